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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers import ROOT, files, notebooks

PROFILES = ("smoke", "gpu", "paper")


@dataclass(frozen=True)
class Run:
    """One execution of one notebook with fixed parameters."""

    notebook: str
    profile: str
    parameters: dict[str, Any]
    overrides: dict[str, Any]
    folder: str

    @property
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
        overrides: parameter name -> texts to try, as typed on a command line.
        out: folder of the outputs.

    Raises:
        ValueError: unknown notebook, profile or parameter, wrong type, value out of range.
        FileNotFoundError: a ``data_root`` that is no folder.
    """
    runs = []
    for name in list(dict.fromkeys(names)) or notebooks.names():
        declared = notebooks.parameters(name)
        fixed = profile_parameters(name, profile)
        axes: dict[str, list[Any]] = {"seed": list(seeds)} if seeds is not None else {}
        for key, texts in (overrides or {}).items():
            if key not in declared:
                notebooks.check_parameters(name, {key: None})  # raises with the nearest name
            axes[key] = [parse_value(declared[key], text) for text in texts]
        for values in itertools.product(*axes.values()):
            chosen = notebooks.check_parameters(name, dict(zip(axes, values, strict=True)))
            parameters = {k: p.default for k, p in declared.items()} | fixed | chosen
            root = parameters.get("data_root")
            if root and not Path(root).expanduser().is_dir():
                raise FileNotFoundError(f"data_root: no folder {root}")
            runs.append(Run(name, profile, parameters, chosen, str(out)))
    if not runs:
        raise ValueError("there is no notebook to run")
    return runs


def profile_parameters(name: str, profile: str) -> dict[str, Any]:
    """Parameters that a profile sets for a notebook, checked.

    Raises:
        ValueError: unknown profile, no such profile for this notebook, or a wrong value in it.
    """
    if profile == "smoke":
        return {}
    if profile not in PROFILES:
        hint = notebooks.nearest(profile, PROFILES)
        raise ValueError(f"no profile {profile!r}{hint}; there are {', '.join(PROFILES)}")
    import yaml

    path = notebooks.FOLDER / "profiles" / profile / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"{name} has no {profile} profile (profiles/{profile}/{name}.yaml)")
    try:
        return notebooks.check_parameters(name, yaml.safe_load(path.read_text()) or {})
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"profiles/{profile}/{name}.yaml: {error}") from None


def parse_value(parameter: notebooks.Parameter, text: str) -> Any:
    """A command-line text in the parameter's declared type.

    Raises:
        ValueError: the text is no such value.
    """
    if parameter.type == "str":
        return text
    try:
        return json.loads(text.lower() if parameter.type == "bool" else text)
    except json.JSONDecodeError:
        raise ValueError(
            f"parameter {parameter.name} must be {parameter.type}, got {text!r}"
        ) from None


def key(run: Run) -> str:
    """What decides a run's result: notebook source, helpers source, parameters, data manifest."""
    cells = [
        (cell.cell_type, cell.source, cell.metadata.get("tags", []))
        for cell in notebooks.read(run.notebook).cells
    ]
    digest = hashlib.sha256(json.dumps([cells, run.parameters], sort_keys=True).encode())
    for path in sorted((ROOT / "helpers").rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    manifest = ROOT / "data" / "manifest.json"
    digest.update(manifest.read_bytes() if manifest.is_file() else b"")
    return digest.hexdigest()


def finished(run: Run, identity: str) -> dict[str, Any] | None:
    """The success record of a run with that key and an undamaged notebook, or None."""
    try:
        record = json.loads(run.path(".json").read_text())
        whole = record["sha256"] == files.sha256(run.path(".ipynb"))
        return record if whole and record["key"] == identity else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _plain(value: Any) -> str:
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", str(value)).strip("_") or "empty"
