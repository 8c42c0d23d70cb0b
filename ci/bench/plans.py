"""Ten thousand runs planned and checked for what is finished, against reading sources each time."""

import json
import tempfile
import time
from pathlib import Path

from helpers import batch, files, plan

RUNS, SAMPLE = 10_000, 20


def pretend_finished(runs: list[plan.Run]) -> None:
    """Write what a finished run leaves: a notebook of a megabyte, and its record."""
    sources = plan.Sources()
    for run in runs:
        run.path(".ipynb").write_bytes(run.stem.encode() * (2**20 // len(run.stem)))
        record = {"key": plan.key(run, sources), "sha256": files.sha256(run.path(".ipynb"))}
        run.path(".json").write_text(json.dumps(record | {"claims": [], "seconds": 1.0}))


def timed(call) -> tuple[float, object]:
    """Seconds and result of one call."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def main() -> None:
    """Print the seconds of each step; the loop without a snapshot is measured on a sample."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        overrides = {"lr": ["0.1,0.2"]}
        make = {"seeds": range(RUNS // 2), "overrides": overrides, "out": out}
        planned, runs = timed(lambda: plan.make_plan(["bimask"], **make))
        pretend_finished(runs[:500])
        checked, found = timed(lambda: batch.resume(runs))
        assert len(found) == 500
        each, _ = timed(lambda: [plan.key(run) for run in runs[:SAMPLE]])
        sources = plan.Sources()
        shared, _ = timed(lambda: [plan.key(run, sources) for run in runs])
        print(f"{RUNS:,} runs planned                    {planned:8.2f} s")
        print(f"checked, 500 finished (1 MiB each)    {checked:8.2f} s")
        print(f"keys from one snapshot                {shared:8.2f} s      1x")
        slow = each * RUNS / SAMPLE
        print(f"keys that read all sources (sampled)  {slow:8.2f} s  {slow / shared:5.0f}x slower")


if __name__ == "__main__":
    main()
