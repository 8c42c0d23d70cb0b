"""Plan notebook runs: the product of notebooks, seeds and parameters, checked before any starts.

A plan is a list of Run. The truth about what is finished is a run's success record, written last;
a missing, stale or damaged record means "not done".
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from helpers import ROOT, files, notebooks, sweeps

PROFILES = ("smoke", "gpu", "paper")
MEMORY = 4 * 2**30  # bytes that a run asks of a cluster unless its profile says otherwise


@dataclass(frozen=True)
class Run:
    """One execution of one notebook with fixed parameters."""

    notebook: str
    profile: str
    parameters: dict[str, Any]
    overrides: dict[str, Any]
    folder: str
    resources: dict[str, float] = field(default_factory=dict)

    @cached_property
    def stem(self) -> str:
        """File name without ending: the notebook and what differs from its profile."""
        parts = [self.notebook]
        parts += [f"{k}-{_plain(v)}" for k, v in self.overrides.items() if k != "data_root"]
        name = ".".join(parts)
        if len(name) > 120:
            digest = hashlib.sha256(json.dumps(self.overrides).encode()).hexdigest()[:12]
            name = f"{self.notebook}.{digest}"
        return name

    def path(self, ending: str) -> Path:
        """A file of this run: ".ipynb", ".json" (the record), ".failed.ipynb"."""
        return Path(self.folder) / f"{self.stem}{ending}"

    @property
    def part(self) -> Path:
        """Where the notebook is written while it runs."""
        return Path(self.folder) / f".{self.stem}.part.ipynb"

    @property
    def comparable(self) -> bool:
        """Whether the stored verdicts are about this run: the defaults, with any seed."""
        return self.profile == "smoke" and not set(self.overrides) - {"seed", "device"}


def make_plan(
    names: Sequence[str],
    *,
    profile: str = "smoke",
    seeds: Sequence[int] | None = None,
    overrides: dict[str, list[str]] | None = None,
    out: Path,
) -> list[Run]:
    """The product of notebooks, seeds and override values; everything is checked here.

    Args:
        names: notebooks; empty means all.
        profile: "smoke" (the notebooks' defaults), "gpu" or "paper".
        seeds: values of the parameter ``seed``; None keeps the profile's.
        overrides: parameter name -> texts to try, as typed on a command line; a text may hold
            several values (`sweeps.parse_values`).
        out: folder of the outputs.

    Raises:
        ValueError: unknown notebook, profile or parameter, wrong type, value out of range.
        FileNotFoundError: a ``data_root`` that is no folder.
    """
    runs, folder = [], str(out)
    for name in list(dict.fromkeys(names)) or notebooks.names():
        declared = notebooks.parameters(name)
        fixed, asked = read_profile(name, profile)
        axes: dict[str, list[Any]] = {"seed": list(seeds)} if seeds is not None else {}
        for key, texts in (overrides or {}).items():
            if key not in declared:
                notebooks.check_parameters(name, {key: None}, declared)  # gives the nearest name
            axes[key] = [v for text in texts for v in sweeps.parse_values(declared[key], text)]
        for key, values in axes.items():
            axes[key] = [declared[key].check(value) for value in values]
        for values in itertools.product(*axes.values()):
            chosen = dict(zip(axes, values, strict=True))
            parameters = {k: p.default for k, p in declared.items()} | fixed | chosen
            needs = default_resources(profile, parameters) | asked
            runs.append(Run(name, profile, parameters, chosen, folder, needs))
    if not runs:
        raise ValueError("there is no notebook to run")
    for root in {run.parameters.get("data_root") for run in runs} - {None, ""}:
        if not Path(root).expanduser().is_dir():
            raise FileNotFoundError(f"data_root: no folder {root}")
    return runs


def profile_parameters(name: str, profile: str) -> dict[str, Any]:
    """Parameters that a profile sets for a notebook, checked.

    Raises:
        ValueError: unknown profile, no such profile for this notebook, or a wrong value in it.
    """
    return read_profile(name, profile)[0]


def read_profile(name: str, profile: str) -> tuple[dict[str, Any], dict[str, float]]:
    """What a profile says about a notebook: its parameters and the ``resources`` it asks for.

    Raises:
        ValueError: unknown profile, no such profile for this notebook, or a wrong value in it.
    """
    if profile == "smoke":
        return {}, {}
    if profile not in PROFILES:
        hint = notebooks.nearest(profile, PROFILES)
        raise ValueError(f"no profile {profile!r}{hint}; there are {', '.join(PROFILES)}")
    import yaml

    path = notebooks.FOLDER / "profiles" / profile / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"{name} has no {profile} profile (profiles/{profile}/{name}.yaml)")
    try:
        values = yaml.safe_load(path.read_text()) or {}
        asked = check_resources(values.pop("resources", {}))
        return notebooks.check_parameters(name, values), asked
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"profiles/{profile}/{name}.yaml: {error}") from None


def default_resources(profile: str, parameters: dict[str, Any]) -> dict[str, float]:
    """Processors, GPUs and bytes of memory that a run takes, as far as its parameters say."""
    processes = parameters.get("processes", 1)
    on_gpu = profile != "smoke" and parameters.get("device") != "cpu"
    cpus = parameters.get("threads", 1) * processes
    return {"cpus": cpus, "gpus": processes if on_gpu else 0, "memory": MEMORY}


def check_resources(asked: dict[str, Any]) -> dict[str, float]:
    """The ``resources`` of a profile, such as {cpus: 8, gpus: 1, memory: 32 GiB}; memory in bytes.

    Raises:
        ValueError: another name, or a value that is no number from 0.
    """
    found = {}
    for name, value in asked.items():
        if name not in ("cpus", "gpus", "memory"):
            raise ValueError(f"resources has no {name!r}; there are cpus, gpus, memory")
        size = re.fullmatch(r"([0-9.]+) ?GiB", str(value)) if name == "memory" else None
        number = float(size[1]) * 2**30 if size else value
        if isinstance(number, bool) or not isinstance(number, (int, float)) or number < 0:
            unit = " (bytes, or such as 32 GiB)" if name == "memory" else ""
            raise ValueError(f"resources: {name} must be a number from 0{unit}, got {value!r}")
        found[name] = number
    return found


class Sources:
    """Digests of what all runs share, each file read once: a snapshot for a batch."""

    def __init__(self) -> None:
        digest = hashlib.sha256()
        for path in sorted((ROOT / "helpers").rglob("*.py")):
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
        manifest = ROOT / "data" / "manifest.json"
        digest.update(manifest.read_bytes() if manifest.is_file() else b"")
        self.shared = digest.hexdigest()
        self._notebooks: dict[str, str] = {}

    def notebook(self, name: str) -> str:
        """Digest of a notebook's cells: kind, source and tags, not outputs."""
        if name not in self._notebooks:
            cells = [
                (cell.cell_type, cell.source, cell.metadata.get("tags", []))
                for cell in notebooks.read(name).cells
            ]
            digest = hashlib.sha256(json.dumps(cells).encode())
            self._notebooks[name] = digest.hexdigest()
        return self._notebooks[name]


def key(run: Run, sources: Sources | None = None) -> str:
    """What decides a run's result: notebook source, helpers source, parameters, data manifest."""
    sources = sources or Sources()
    parts = [sources.notebook(run.notebook), sources.shared, run.parameters]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def finished(run: Run, identity: str) -> dict[str, Any] | None:
    """The success record of a run with that key and an undamaged notebook, or None."""
    try:
        record = json.loads(run.path(".json").read_text())
        if record["key"] != identity:
            return None
        return record if record["sha256"] == files.sha256(run.path(".ipynb")) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _plain(value: Any) -> str:
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", str(value)).strip("_") or "empty"
