"""``python -m helpers.worker``: execute one run (JSON on standard input) through papermill.

Speaks one JSON object a line on standard output: {"done": 3, "cells": 40} before each cell, and
at a failure {"outcome": ..., "message": ...}.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from importlib import metadata
from typing import Any

import nbformat
import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from helpers import ROOT, batch, claims, files, notebooks, plan


def main() -> int:
    request = json.load(sys.stdin)
    identity = request.pop("key")
    run = plan.Run(**request)
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries that print go to the error log, the channel stays clean
    threading.Thread(target=_die_with_parent, args=(os.getppid(),), daemon=True).start()
    start = time.monotonic()
    try:
        notebook = _papermill(run, channel)
    except Exception as error:
        outcome, message = explain(error)
        print(json.dumps({"outcome": outcome, "message": message}), file=channel)
        return 1
    notebook.metadata["reproduce"] = {
        "key": identity,
        "notebook": run.notebook,
        "profile": run.profile,
        "parameters": run.parameters,
        "overrides": run.overrides,
        "seconds": round(time.monotonic() - start, 1),
        # the kernel is this process's only heavy child; Linux counts in kilobytes
        "peak_memory": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024),
        "settings": settings(notebook),
        **provenance(),
    }
    nbformat.write(notebook, run.part)
    with run.part.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(run.part, run.path(".ipynb"))
    record = dict(notebook.metadata["reproduce"])
    record["claims"] = claims.from_notebook(notebook)
    record["sha256"] = files.sha256(run.path(".ipynb"))
    files.write_atomic(run.path(".json"), json.dumps(record, indent=1).encode())
    return 0


def explain(error: Exception) -> tuple[str, str]:
    """The outcome's word and a one-line message for what papermill raised."""
    if isinstance(error, PapermillExecutionError):
        return (
            batch.ERROR,
            f"cell {error.exec_count}: {error.ename}: {error.evalue.splitlines()[0]}",
        )
    if isinstance(error, CellTimeoutError):
        return batch.TIMEOUT, "a cell ran past its time"
    if isinstance(error, DeadKernelError):
        return batch.KERNEL_DIED, "the kernel died (out of memory, or killed)"
    return batch.ERROR, f"{type(error).__name__}: {error}".splitlines()[0]


def provenance() -> dict[str, Any]:
    """Git state, versions and hardware, with nothing that names a person or a folder."""
    requires = [r.split(";")[0] for r in metadata.requires("reproduce-cv") or [] if ";" not in r]
    packages = sorted(r.split(">")[0].split("=")[0].strip() for r in requires)
    manifest = ROOT / "data" / "manifest.json"
    return {
        "data": files.sha256(manifest) if manifest.is_file() else "",
        "git": {"commit": _output("git", "rev-parse", "HEAD"),
                "dirty": bool(_output("git", "status", "--porcelain"))},
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
        "hardware": {
            "machine": f"{platform.system()} {platform.machine()}",
            "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
            else os.cpu_count(),
            "gpus": (_output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "")
            .splitlines(),
        },
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip


def settings(notebook) -> dict[str, str]:
    """Threads, determinism and device: the variables of the run and the notebook's banner."""
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES", "PYTHONHASHSEED")
    found = {name: os.environ[name] for name in names if name in os.environ}
    for output in (o for cell in notebook.cells for o in cell.get("outputs", [])):
        text = output.get("text", "")
        if output.output_type == "stream" and text.startswith("torch ") and " | seed " in text:
            return found | {"banner": text.splitlines()[0]}
    return found


def _papermill(run: plan.Run, channel):
    total = len(notebooks.read(run.notebook).cells)
    changed = {
        name: run.parameters[name]
        for name, parameter in notebooks.parameters(run.notebook).items()
        if run.parameters[name] != parameter.default
    }

    def on_cell(cell, cell_index: int) -> None:
        print(json.dumps({"done": cell_index, "cells": total}), file=channel)

    runtime = tempfile.mkdtemp(prefix="reproduce-")  # short: socket paths end at 107 characters
    os.environ.pop("MPLBACKEND", None)  # the kernel chooses the one that shows figures
    os.environ |= {
        "JUPYTER_RUNTIME_DIR": runtime,
        "TQDM_DISABLE": "1",  # a bar that nobody watches is debris in the output
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait starve other runs
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    # parallel kernels race for TCP ports; sockets in a folder of their own cannot collide
    ipc = {"KernelManager": {"transport": "ipc", "ip": f"{runtime}/kernel"}}
    try:
        return papermill.execute_notebook(
            notebooks.path_of(run.notebook), run.part, parameters=changed,
            kernel_name="python3", language="python", cwd=notebooks.FOLDER,
            progress_bar=False, config=Config(ipc), on_cell_start=on_cell,
        )  # fmt: skip
    finally:
        shutil.rmtree(runtime, ignore_errors=True)


def _die_with_parent(parent: int) -> None:
    """End when the batch was killed, so that its successor never meets a writer left behind."""
    while os.getppid() == parent:
        time.sleep(0.3)
    os._exit(1)  # the kernel watches this process and follows


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


if __name__ == "__main__":
    sys.exit(main())
