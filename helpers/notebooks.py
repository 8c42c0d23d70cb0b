"""Notebooks as files: list them, read title card and parameters, load their method definitions."""

from __future__ import annotations

import ast
import difflib
import hashlib
import io
import linecache
import os
import re
import sys
import tokenize
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers import ROOT

FOLDER = Path(os.environ.get("REPRODUCE_NOTEBOOKS", ROOT / "notebooks"))
"""Where the notebooks are; the environment variable points the runner at a folder of yours."""

TYPES = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "list[int]": list[int],
    "list[float]": list[float],
    "list[str]": list[str],
}


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's parameters cell."""

    name: str
    type: str
    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    def check(self, value: Any) -> Any:
        """Return ``value`` in the declared type (an int may stand for a float).

        Raises:
            ValueError: wrong type, or outside the range or choices that the comment states.
        """
        if self.type == "float" and type(value) is int:
            value = float(value)
        if not _is_a(value, TYPES[self.type]):
            raise ValueError(
                f"parameter {self.name} must be {self.type}, got {value!r} ({type(value).__name__})"
            )
        for item in value if isinstance(value, list) else [value]:
            if self.choices and str(item) not in self.choices:
                raise ValueError(
                    f"parameter {self.name} must be one of {', '.join(self.choices)}, "
                    f"got {item!r}{nearest(str(item), self.choices)}"
                )
            low_ok = self.low is None or item >= self.low
            if not (low_ok and (self.high is None or item <= self.high)):
                bounds = f"[{_number(self.low)}..{_number(self.high)}]"
                raise ValueError(f"parameter {self.name} must be in {bounds}, got {item!r}")
        return value


@dataclass(frozen=True)
class Card:
    """The title card of a notebook: its first cell."""

    name: str
    title: str
    summary: str
    paper: str
    arxiv: str
    claim: str
    smoke: str
    gpu: str
    paper_scale: str


def names() -> list[str]:
    """Names of all notebooks, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def path_of(name: str) -> Path:
    """The file of a notebook.

    Raises:
        ValueError: no such notebook; the message gives the nearest name.
    """
    path = FOLDER / f"{name}.ipynb"
    if not re.fullmatch(r"[A-Za-z0-9_]+", name) or not path.is_file():
        known = names()
        raise ValueError(
            f"no notebook {name!r}{nearest(name, known)}; there are {', '.join(known)}"
        )
    return path


def read(name_or_path: str | Path):
    """The notebook as nbformat's NotebookNode (version 4).

    Raises:
        ValueError: unknown name, or a file that is no notebook.
    """
    import nbformat

    path = name_or_path if isinstance(name_or_path, Path) else path_of(name_or_path)
    try:
        return nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path.name} is not a readable notebook: {reason}") from None


def tagged(notebook, tag: str) -> list:
    """The code cells that carry ``tag``, in order."""
    return [
        cell
        for cell in notebook.cells
        if cell.cell_type == "code" and tag in cell.metadata.get("tags", [])
    ]


def card(name: str) -> Card:
    """The title card of a notebook.

    Raises:
        ValueError: the first cell lacks the title or one of the five lines.
    """
    text = read(name).cells[0].source
    title = re.search(r"^# (.+)$", text, re.M)
    body = text[title.end() :] if title else ""
    summary = " ".join(body.split("\n- **")[0].split())
    lines = dict(re.findall(r"^- \*\*(.+?)\*\*: (.+)$", text, re.M))
    missing = {"Paper", "Claim", "Smoke", "GPU", "Paper scale"} - set(lines)
    arxiv = re.search(r"arxiv\.org/abs/([0-9.v]+)", lines.get("Paper", ""))
    if not title or missing or not arxiv:
        raise ValueError(
            f"{name}: the title card lacks {', '.join(sorted(missing)) or 'its title'}"
        )
    return Card(
        name, title[1], summary, lines["Paper"], arxiv[1],
        lines["Claim"], lines["Smoke"], lines["GPU"], lines["Paper scale"],
    )  # fmt: skip


def parameters(name: str) -> dict[str, Parameter]:
    """Declared parameters of a notebook, by name, in order.

    Raises:
        ValueError: no parameters cell, or a line that is not ``name: type = value  # meaning``.
    """
    cells = tagged(read(name), "parameters")
    if len(cells) != 1:
        raise ValueError(f"{name}: {len(cells)} cells are tagged parameters, there must be one")
    comments = _comments(cells[0].source)
    found = {}
    for node in ast.parse(cells[0].source).body:
        try:
            annotation = ast.unparse(node.annotation)
            default = ast.literal_eval(node.value)
            help_ = comments[node.end_lineno]
            parameter = Parameter(node.target.id, annotation, default, *_limits(help_, annotation))
            found[parameter.name] = parameter
        except (AttributeError, KeyError, ValueError) as error:
            raise ValueError(
                f"{name}: parameters line {node.lineno} must read 'name: type = value  # meaning' "
                f"with type in {', '.join(TYPES)} ({error})"
            ) from None
        parameter.check(default)
    return found


def check_parameters(
    name: str, values: dict[str, Any], declared: dict[str, Parameter] | None = None
) -> dict[str, Any]:
    """Check values against a notebook's declared parameters; return them in their declared types.

    declared: `parameters(name)`, for a caller that checks many values and has read them once.

    Raises:
        ValueError: unknown name (the message gives the nearest one), wrong type, or out of range.
    """
    declared = parameters(name) if declared is None else declared
    for key in values:
        if key not in declared:
            raise ValueError(
                f"{name} has no parameter {key!r}{nearest(key, declared)}; "
                f"see 'reproduce list {name}'"
            )
    return {key: declared[key].check(value) for key, value in values.items()}


def load(name: str) -> types.ModuleType:
    """The definitions of a notebook's cells tagged ``method``, as a module; nothing else runs.

    The module is cached until the notebook's file changes. Tracebacks show the cell's source.

    Raises:
        ValueError: unknown notebook, or no method cell in it.
    """
    path = path_of(name)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    module_name = f"notebook_{name}"
    cached = sys.modules.get(module_name)
    if cached is not None and cached.__digest__ == digest:
        return cached
    cells = tagged(read(name), "method")
    if not cells:
        raise ValueError(f"{name} has no cell tagged method")
    module = types.ModuleType(module_name, f"Method definitions of notebooks/{name}.ipynb")
    module.__file__, module.__digest__ = str(path), digest
    sys.modules[module_name] = module  # dataclasses and pickle look the module up by name
    try:
        for number, cell in enumerate(cells):
            label = f"<{name}.ipynb, method cell {number}>"
            lines = cell.source.splitlines(keepends=True)
            linecache.cache[label] = (len(cell.source), None, lines, label)
            code = compile(cell.source, label, "exec", dont_inherit=True)
            exec(code, module.__dict__)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def nearest(word: str, words: typing.Iterable[str]) -> str:
    """``", did you mean X?"`` for the closest of ``words``, or an empty string."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


def _is_a(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is list:
        (item,) = typing.get_args(kind)
        accepted = (int, float) if item is float else (item,)
        return isinstance(value, list) and all(type(v) in accepted for v in value)
    return type(value) is kind


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}


def _limits(comment: str, annotation: str) -> tuple:
    """(help, low, high, choices) from a comment that may end in [low..high] or {a, b}."""
    if annotation not in TYPES:
        raise KeyError(f"type {annotation}")
    number = r"(-?[0-9.]*?(?:e-?[0-9]+)?)"
    bounds = re.search(rf"\[{number}\.\.{number}\]$", comment)
    if bounds:
        low, high = (float(text) if text else None for text in bounds.groups())
        return comment, low, high, ()
    choices = re.search(r"\{(.+)\}$", comment)
    return comment, None, None, tuple(re.split(r",\s*", choices[1])) if choices else ()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
