"""Run an executed notebook's run again and say whether its claims agree, and what differs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers import batch, notebooks, plan, report

ASIDE = ("seconds", "peak_memory", "finished", "parameters", "overrides", "notebook", "profile")


@dataclass(frozen=True)
class Verification:
    """A run and its repetition: rows of (name, then, now)."""

    outcome: batch.Outcome
    claims: list[tuple[str, str, str]]
    provenance: list[tuple[str, str, str]]

    @property
    def agrees(self) -> bool:
        """Whether the run succeeded with the same claims and the same verdicts."""
        ended = self.outcome.outcome in (batch.OK, batch.CLAIM_CHANGED)
        return ended and bool(self.claims) and all(then == now for _, then, now in self.claims)


def verify(
    path: Path,
    *,
    timeout: float | None = None,
    on_event: Callable[[plan.Run, dict[str, Any]], None] = lambda run, event: None,
) -> Verification:
    """Repeat the run that an executed notebook describes, in a folder that is thrown away.

    Only names and parameter values are taken from the file, and they are checked like typed
    ones; the code that runs is this checkout's.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no executed notebook with provenance, or its parameters do not exist any more.
    """
    executed = _read(path)
    about = executed.about
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        run = again(about, Path(folder))
        on_event(run, {"event": "start"})
        outcome = batch.supervise(run, timeout=timeout, on_event=on_event)
        on_event(run, {"event": "end", "outcome": outcome})
        now = {}
        if run.path(".ipynb").is_file():
            now = report.read(run.path(".ipynb")).about
    return Verification(
        outcome, _verdicts(executed.claims, outcome.claims), differences(about, now)
    )


def again(about: dict[str, Any], folder: Path) -> plan.Run:
    """The run that the metadata of an executed notebook describes.

    Raises:
        ValueError: unknown notebook or profile, or other parameters than the notebook has now.
    """
    try:
        name, profile = str(about["notebook"]), str(about["profile"])
        values, overrides = dict(about["parameters"]), dict(about["overrides"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its provenance lacks {error}") from None
    declared = notebooks.parameters(name)
    chosen = notebooks.check_parameters(name, values, declared)
    if missing := sorted(declared.keys() - chosen.keys()):
        raise ValueError(f"{name} has new parameters since: {', '.join(missing)}")
    needs = plan.default_resources(profile, chosen)
    kept = {key: chosen[key] for key in overrides if key in chosen}
    return plan.Run(name, profile, chosen, kept, str(folder), needs)


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What differs between two provenances, as (name, then, now), nested names with dots."""
    first, second = _flat(then), _flat(now)
    return [
        (name, first.get(name, "absent"), second.get(name, "absent"))
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name)
    ]


def _read(path: Path) -> report.Executed:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        executed = report.read(path)
    except (AttributeError, TypeError, IndexError):
        executed = None
    if executed is None or "key" not in executed.about:
        raise ValueError(f"{path.name} was not executed by reproduce: it has no provenance")
    return executed


def _verdicts(then: list[dict[str, str]], now: list[dict[str, str]]) -> list[tuple[str, str, str]]:
    first, second = ({row["id"]: row["verdict"] for row in rows} for rows in (then, now))
    names = list(dict.fromkeys([*first, *second]))
    return [(name, first.get(name, "absent"), second.get(name, "absent")) for name in names]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    found = {}
    for name, value in values.items():
        if prefix or name not in ASIDE:
            inner = f"{prefix}{name}"
            found |= _flat(value, f"{inner}.") if isinstance(value, dict) else {inner: str(value)}
    return found
