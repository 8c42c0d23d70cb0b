"""The smaller commands: ``reproduce list``, ``report``, ``verify`` and ``ledger``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from helpers import notebooks

USAGE = (
    "reproduce list [NAME]", "reproduce report DIR", "reproduce verify RUN.ipynb",
    "reproduce ledger DIR",
)  # fmt: skip


def list_command(arguments: Sequence[str]) -> int:
    """``reproduce list``: papers; ``reproduce list NAME``: one paper's parameters and claims."""
    parser = argparse.ArgumentParser(prog="reproduce list")
    parser.add_argument("names", nargs="*", metavar="NAME")
    chosen = parser.parse_args(arguments).names
    console = Console()
    if not chosen:
        table = Table("notebook", "arXiv", "claim", title="Papers")
        for name in notebooks.names():
            card = notebooks.card(name)
            table.add_row(name, card.arxiv, card.claim)
        console.print(table)
    for name in chosen:
        from helpers.claims import from_notebook

        card = notebooks.card(name)
        console.print(f"[bold]{card.title}[/]\n{card.summary}\n", soft_wrap=True)
        table = Table("parameter", "type", "default", "meaning")
        for parameter in notebooks.parameters(name).values():
            fields = (parameter.name, parameter.type, repr(parameter.default), parameter.help)
            table.add_row(*map(escape, fields))
        console.print(table)
        claims = Table("claim", "statement", "stored verdict")
        for row in from_notebook(notebooks.read(name)):
            claims.add_row(row["id"], row["statement"], row["verdict"])
        console.print(claims)
    return 0


def report_command(arguments: Sequence[str]) -> int:
    """``reproduce report DIR``: write the gallery of a folder of executed notebooks."""
    parser = argparse.ArgumentParser(prog="reproduce report")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(arguments).folder
    from helpers import report

    print(f"Report: {shown(report.write(folder))}")
    return 0


def verify_command(arguments: Sequence[str]) -> int:
    """``reproduce verify RUN.ipynb``: run it again; exit code 1 when a verdict differs."""
    parser = argparse.ArgumentParser(prog="reproduce verify")
    parser.add_argument("path", type=Path, metavar="RUN.ipynb")
    parser.add_argument("--timeout", type=float, help="seconds the run may take")
    options = parser.parse_args(arguments)
    from helpers import verify

    console = Console()
    found = verify.verify(options.path, timeout=options.timeout)
    if not found.outcome.claims:
        console.print(f"[red]{found.outcome.outcome}[/] {escape(found.outcome.message)}")
    table = Table("claim", "then", "now", "")
    for name, then, now in found.claims:
        table.add_row(name, then, now, "agrees" if then == now else "[red]differs[/]")
    console.print(table)
    if found.provenance:
        changes = Table("provenance", "then", "now")
        for row in found.provenance:
            changes.add_row(*map(escape, row))
        console.print(changes)
    console.print("The claims agree." if found.agrees else "[red]The claims do not agree.[/]")
    return int(not found.agrees)


def ledger_command(arguments: Sequence[str]) -> int:
    """``reproduce ledger DIR``: keep the outcomes above smoke scale in data/results."""
    parser = argparse.ArgumentParser(prog="reproduce ledger")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(arguments).folder
    from helpers import ledger

    for path in ledger.collect(folder):
        print(f"kept in {shown(path)}")
    ledger.update_readme()
    return 0


def shown(path: Path) -> str:
    """A path as the reader would type it."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


COMMANDS = {
    "list": list_command,
    "report": report_command,
    "verify": verify_command,
    "ledger": ledger_command,
}
