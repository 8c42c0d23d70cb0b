"""Sweeps: values as they are typed, seeds, and plan files in YAML."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helpers import notebooks

ENTRY = ("notebooks", "profile", "seeds", "parameters")


def parse_values(parameter: notebooks.Parameter, text: str) -> list[Any]:
    """The values of one ``-p NAME=TEXT`` in the parameter's declared type.

    ``1,2,3`` gives three numbers, ``[1,2],[3]`` two lists, ``a,b`` two words; ``"a,b"`` in
    double quotes is one word. Folders (``data_root``) are never taken apart.

    Raises:
        ValueError: the text is no such value.
    """
    if parameter.type == "str" and not text.startswith('["'):
        if parameter.name == "data_root" or not text:
            return [text]
        return next(csv.reader([text], skipinitialspace=True))
    try:
        values = json.loads(f"[{text.lower() if parameter.type == 'bool' else text}]")
    except json.JSONDecodeError:
        values = []
    if len(values) == 1 and isinstance(values[0], list) and not parameter.type.startswith("list"):
        values = values[0]  # a list in brackets for a parameter that is none
    if not values:
        raise ValueError(f"parameter {parameter.name} must be {parameter.type}, got {text!r}")
    return values


def seed_list(text: str | int) -> list[int]:
    """``"0-2"`` or ``"0,3,5"`` as a list.

    Raises:
        ValueError: another form.
    """
    text = str(text)
    if match := re.fullmatch(r"(\d+)-(\d+)", text):
        first, last = map(int, match.groups())
        if last >= first:
            return list(range(first, last + 1))
    elif re.fullmatch(r"\d+(,\d+)*", text):
        return sorted({int(part) for part in text.split(",")})
    raise ValueError(f"seeds look like 0-2 or 0,3,5, got {text!r}")


def key_values(texts: Sequence[str]) -> dict[str, list[str]]:
    """``["a=1", "a=2"]`` as ``{"a": ["1", "2"]}``.

    Raises:
        ValueError: a text without "=".
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise ValueError(f"-p takes KEY=VALUE, got {text!r}")
        found.setdefault(name, []).append(value)
    return found


def read_plan(path: Path) -> list[dict[str, Any]]:
    """The entries of a plan file, as arguments of `helpers.plan.make_plan` (without ``out``).

    A plan file is a YAML list. Each entry may have ``notebooks`` (one name or a list; all if
    absent), ``profile``, ``seeds`` (such as 0-4) and ``parameters`` (NAME: value, or a list of
    values to sweep over; for a parameter that is a list itself, a list of lists).

    Raises:
        FileNotFoundError: no such file.
        ValueError: no YAML list of such entries; the message names the file and the entry.
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no plan file {path}")
    try:
        entries = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name}: {' '.join(str(error).split())}") from None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path.name} must be a list of entries ({', '.join(ENTRY)})")
    found = []
    for number, entry in enumerate(entries, start=1):
        try:
            found.append(_entry(entry))
        except ValueError as error:
            raise ValueError(f"{path.name}, entry {number}: {error}") from None
    return found


def _entry(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise ValueError(f"must have keys such as notebooks, got {entry!r}")
    for name in entry:
        if name not in ENTRY:
            raise ValueError(f"has no {name!r}{notebooks.nearest(str(name), ENTRY)}")
    names, parameters = entry.get("notebooks", []), entry.get("parameters") or {}
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not isinstance(parameters, dict):
        raise ValueError("notebooks must be names, and parameters NAME: value")
    return {
        "names": names,
        "profile": entry.get("profile", "smoke"),
        "seeds": seed_list(entry["seeds"]) if "seeds" in entry else None,
        "overrides": {str(name): _texts(value) for name, value in parameters.items()},
    }


def _texts(value: Any) -> list[str]:
    """A YAML value as it would be typed; a list is one text, whose meaning the type decides."""
    if isinstance(value, str):
        quoted = value.replace('"', '""')
        return [f'"{quoted}"' if "," in value or '"' in value else value]
    if isinstance(value, list) and value and all(isinstance(item, list) for item in value):
        return [",".join(map(json.dumps, value))]
    return [json.dumps(value)]
