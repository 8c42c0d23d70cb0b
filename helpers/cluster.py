"""Execute a plan on a Ray cluster: one task a run, with the resources that the run asks for.

Every node needs the project at the same path with its environment, and the output folder on a
shared file system or at an address (helpers.remote). A run whose node is lost is tried again
elsewhere; a run that fails by itself is not. The success records stay the only truth about what
is finished.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from helpers import ROOT, batch, notebooks
from helpers.batch import CANCELLED, ERROR, Outcome
from helpers.plan import Run
from helpers.remote import Remote

RETRIES = 3  # of a run whose node or worker process was lost


def execute(
    runs: Sequence[Run],
    *,
    address: str,
    timeout: float | None = None,
    fresh: bool = False,
    there: Remote | None = None,
    on_event: Callable[[Run, dict[str, Any]], None] = lambda run, event: None,
) -> list[Outcome]:
    """Execute a plan on a cluster and return one outcome a run, in the plan's order.

    Args:
        runs: the plan; all else as for `helpers.batch.execute`.
        address: "local" starts Ray on this machine, "auto" joins the cluster that this machine
            belongs to, "HOST:PORT" another one.
        there: an address of the outputs; then nodes need no shared folder, each copies up what it
            has finished.

    Raises:
        ValueError: two runs with one output, or Ray is not installed.
        ConnectionError: no cluster at the address.
    """
    outcomes = batch.resume(runs, fresh=fresh, on_event=on_event)
    pending = [run for run in runs if run.path("") not in outcomes]
    if pending:
        with _connection(address) as ray:
            outcomes |= _run_all(ray, pending, timeout, there, on_event)
    return [outcomes[run.path("")] for run in runs]


@contextlib.contextmanager
def _connection(address: str):
    try:
        import ray
    except ImportError:
        raise ValueError(
            "--ray needs Ray: .venv/bin/pip install -c ci/constraints.txt -e '.[cluster]'"
        ) from None
    ours = not ray.is_initialized()
    if ours:
        options = {"log_to_driver": False, "logging_level": "error"}
        options |= {"include_dashboard": False} if address == "local" else {}
        before = signal.getsignal(signal.SIGTERM)
        try:
            _knock(address)  # Ray itself would wait for minutes
            ray.init(address=address, **options)
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ConnectionError(f"no Ray cluster at {address!r}: {reason}") from None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray's own would end us at once
    try:
        yield ray
    finally:
        if ours:
            ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError when nobody listens at HOST:PORT; other addresses are left to Ray."""
    host, sign, port = address.partition(":")
    if sign and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _run_all(ray, pending: Sequence[Run], timeout, there, on_event) -> dict[Path, Outcome]:
    """Outcomes by place. One task a run; what happens on the nodes comes back through a queue."""
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    variables = {"PYTHONPATH": str(ROOT), "REPRODUCE_NOTEBOOKS": str(notebooks.FOLDER)}
    if "REPRO_DATA" in os.environ:
        variables["REPRO_DATA"] = os.environ["REPRO_DATA"]
    task = ray.remote(max_retries=RETRIES, runtime_env={"env_vars": variables})(_task)
    place = (there.url, str(there.local)) if there else None
    waiting = {}
    for run in pending:
        needs = run.resources
        asked = {"num_cpus": needs.get("cpus", 1), "num_gpus": needs.get("gpus", 0)}
        options = {"name": run.stem, "memory": needs.get("memory", 0) or None}
        reference = task.options(**asked, **options).remote(asdict(run), timeout, queue, place)
        waiting[reference] = run
    known, outcomes = {str(run.path("")): run for run in pending}, {}
    try:
        while waiting:
            ready, _ = ray.wait(list(waiting), timeout=0.5)
            _drain(queue, known, on_event)
            for reference in ready:
                run = waiting.pop(reference)
                outcomes[run.path("")] = _outcome(ray, reference, run)
                if there:
                    there.pull([run])
                on_event(run, {"event": "end", "outcome": outcomes[run.path("")]})
    except KeyboardInterrupt:
        for reference in waiting:
            ray.cancel(reference)
        ray.wait(list(waiting), num_returns=len(waiting), timeout=30)
        done = batch.resume(list(waiting.values()))  # some may have ended in that moment
        for run in waiting.values():
            outcomes[run.path("")] = done.get(run.path("")) or Outcome(run, CANCELLED)
            on_event(run, {"event": "end", "outcome": outcomes[run.path("")]})
    finally:
        queue.shutdown(force=True)
    return outcomes


def _task(
    description: dict[str, Any], timeout: float | None, queue, place: tuple[str, str] | None
) -> dict[str, Any]:
    """What a node does: one run, as on one machine; only plain values go back."""
    run = Run(**description)

    def tell(run: Run, event: dict[str, Any]) -> None:
        with contextlib.suppress(Exception):  # progress is not worth a run
            queue.put_nowait((str(run.path("")), event))

    outcome = batch.supervise(run, timeout=timeout, on_event=tell)
    if place:
        Remote(place[0], Path(place[1])).push(run)
    return {k: v for k, v in vars(outcome).items() if k != "run"}


def _outcome(ray, reference, run: Run) -> Outcome:
    try:
        return Outcome(run, **ray.get(reference))
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[0]
        return Outcome(run, ERROR, f"the cluster lost this run {RETRIES + 1} times: {reason}")


def _drain(queue, known: dict[str, Run], on_event) -> None:
    with contextlib.suppress(Exception):
        for place, event in queue.get_nowait_batch(queue.qsize()):
            on_event(known[place], event)
