"""The ``reproduce`` command: plan, run and report; see README.md for examples."""

from __future__ import annotations

import argparse
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from helpers import ROOT, batch, commands, plan, remote, sweeps

USAGE_ERRORS = (
    ValueError, FileNotFoundError, PermissionError, BlockingIOError, ConnectionError,
)  # fmt: skip
MARKS = {"reproduced": "green", "not reproduced": "red", "not testable at this scale": "dim"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Exit codes: 0 all well, 1 a run failed or a claim changed, 2 wrong use,
    130 cancelled."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = commands.COMMANDS.get(arguments[0]) if arguments else None
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return command(arguments[1:]) if command else run_command(arguments)
    except USAGE_ERRORS as error:
        print(f"reproduce: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("reproduce: cancelled", file=sys.stderr)
        return 130


def run_parser() -> argparse.ArgumentParser:
    """The parser of the main command."""
    parser = argparse.ArgumentParser(
        prog="reproduce",
        description="Run notebooks headlessly and judge their claims.",
        epilog="Other commands: " + " | ".join(commands.USAGE),
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="notebooks (all if none is named)")
    parser.add_argument("--profile", default="smoke", help="smoke, gpu or paper [smoke]")
    parser.add_argument("--seeds", type=_seeds, help="such as 0-2 or 0,3,5")
    parser.add_argument(
        "-p", dest="parameters", action="append", default=[], metavar="KEY=VALUE",
        help="set a parameter; KEY=A,B,C or the same key again adds a run for each value",
    )  # fmt: skip
    parser.add_argument(
        "--plan", type=Path, metavar="FILE",
        help="a YAML list of entries with notebooks, profile, seeds, parameters",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="show the plan, run nothing")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time [1]")
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="run on a Ray cluster: auto, local or HOST:PORT"
    )
    parser.add_argument(
        "--out", help="output folder, or an address such as s3://BUCKET/FOLDER [runs/PROFILE]"
    )
    parser.add_argument("--timeout", type=float, help="seconds a run may take")
    parser.add_argument("--fresh", action="store_true", help="run again what is finished already")
    parser.add_argument(
        "--store", action="store_true",
        help="run the defaults and refresh the outputs stored in notebooks/",
    )  # fmt: skip
    return parser


def run_command(arguments: Sequence[str]) -> int:
    """Run the plan, print the claim table and write the report."""
    options = run_parser().parse_args(arguments)
    if options.store and (
        options.profile != "smoke" or options.seeds or options.parameters or options.plan
    ):
        raise ValueError("--store keeps the outputs of the default parameters; give only names")
    there = remote.Remote(options.out) if remote.is_url(options.out or "") else None
    out, runs = planned(options, there.local if there else None)
    console = Console()
    if there and not options.fresh:
        there.pull(runs)
    if options.dry_run:
        show_plan(runs, options.fresh, console)
        return 0
    with batch.folder_lock(out):
        from helpers import progress, report

        with progress.show(runs, console) as on_event:
            limits = {"timeout": options.timeout, "fresh": options.fresh or options.store}
            limits["on_event"] = there.following(on_event) if there else on_event
            if options.ray:
                from helpers import cluster

                outcomes = cluster.execute(runs, address=options.ray, there=there, **limits)
            else:
                outcomes = batch.execute(runs, jobs=options.jobs, **limits)
        if options.store:
            from helpers import ledger, store

            for outcome in outcomes:
                if outcome.outcome in (batch.OK, batch.CLAIM_CHANGED):
                    store.store(outcome.run)
                    outcome.outcome = batch.OK
            if ledger.readme().is_file():
                ledger.update_readme()
        page = report.write(out) if next(out.rglob("*.ipynb"), None) else None
        if page and there:
            there.push_report()
    if any(outcome.claims for outcome in outcomes):
        console.print(claim_table(outcomes))
    for outcome in outcomes:
        if outcome.outcome != batch.OK:
            console.print(
                f"[red]{outcome.run.stem}: {outcome.outcome}[/] {escape(outcome.message)}"
            )
    console.print(summary(outcomes), soft_wrap=True)
    if there:
        console.print(f"Copied to {there.url}", soft_wrap=True)
    console.print(f"Executed notebooks: {commands.shown(out)}", soft_wrap=True)
    if page:
        console.print(f"Report: {commands.shown(page)}", soft_wrap=True)
    return exit_code(outcomes)


def planned(options: argparse.Namespace, local: Path | None = None) -> tuple[Path, list[plan.Run]]:
    """The output folder (`local`, or what the options say) and the runs that they ask for.

    The runs of a plan file lie in one folder below it for each profile.
    """
    if not options.plan:
        name = "store" if options.store else options.profile
        out = local or Path(options.out or ROOT / "runs" / name).resolve()
        overrides = sweeps.key_values(options.parameters)
        wanted = {"profile": options.profile, "seeds": options.seeds, "overrides": overrides}
        return out, plan.make_plan(options.names, out=out, **wanted)
    if options.names or options.seeds or options.parameters or options.profile != "smoke":
        raise ValueError("--plan names notebooks, profiles, seeds and parameters itself")
    out = local or Path(options.out or ROOT / "runs" / options.plan.stem).resolve()
    entries = sweeps.read_plan(options.plan)
    runs = [run for e in entries for run in plan.make_plan(**e, out=out / e["profile"])]
    return out, runs


def show_plan(runs: Sequence[plan.Run], fresh: bool, console: Console) -> None:
    """Print what would run and what is finished already, at most 50 runs one by one."""
    done = batch.resume(runs, fresh=fresh)
    table = Table("run", "profile", "asks for", "state")
    for run in runs[:50]:
        asks = f"{run.resources['cpus']:g} CPUs, {run.resources['gpus']:g} GPUs"
        state = "finished before" if run.path("") in done else "would run"
        table.add_row(escape(run.stem), run.profile, asks, state)
    console.print(table)
    if len(runs) > 50:
        console.print(f"... and {len(runs) - 50} more")
    console.print(f"{len(runs)} runs: {len(runs) - len(done)} would run, {len(done)} are finished")


def claim_table(outcomes: Sequence[batch.Outcome]) -> Table:
    """One row a claim, verdicts counted over the runs of a notebook."""
    table = Table("notebook", "claim", "statement", "verdict")
    for name in dict.fromkeys(outcome.run.notebook for outcome in outcomes):
        mine = [outcome for outcome in outcomes if outcome.run.notebook == name]
        rows = {row["id"]: row for outcome in mine for row in outcome.claims}
        for id, row in rows.items():
            counts = Counter(c["verdict"] for o in mine for c in o.claims if c["id"] == id)
            words = [
                f"[{MARKS[verdict]}]{verdict}[/]" + (f" {n}/{len(mine)}" if len(mine) > 1 else "")
                for verdict, n in counts.items()
            ]
            table.add_row(name, id, row["statement"], ", ".join(words))
        table.add_section()
    return table


def summary(outcomes: Sequence[batch.Outcome]) -> str:
    """``3 ok (1 resumed), 1 timeout`` and the time spent."""
    counts = Counter(outcome.outcome for outcome in outcomes)
    words = ", ".join(f"{counts[word]} {word}" for word in batch.OUTCOMES if counts[word])
    resumed = sum(outcome.resumed for outcome in outcomes)
    spent = sum(outcome.seconds for outcome in outcomes if not outcome.resumed)
    return f"{words}{f' ({resumed} finished before)' if resumed else ''}; {spent:.0f} s of runs"


def _seeds(text: str) -> list[int]:
    try:
        return sweeps.seed_list(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def exit_code(outcomes: Sequence[batch.Outcome]) -> int:
    """0 if all is well, 130 if the batch was cancelled, else 1."""
    words = {outcome.outcome for outcome in outcomes}
    return 130 if batch.CANCELLED in words else int(words != {batch.OK})


if __name__ == "__main__":
    sys.exit(main())
