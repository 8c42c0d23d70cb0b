"""The ``reproduce`` command: plan, run and report; see README.md for examples."""

from __future__ import annotations

import argparse
import re
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from helpers import ROOT, batch, notebooks, plan

USAGE_ERRORS = (ValueError, FileNotFoundError, PermissionError, BlockingIOError)
MARKS = {"reproduced": "green", "not reproduced": "red", "not testable at this scale": "dim"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Exit codes: 0 all well, 1 a run failed or a claim changed, 2 wrong use,
    130 cancelled."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands = {"list": list_command, "report": report_command, "ledger": ledger_command}
    command = commands.get(arguments[0]) if arguments else None
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
        epilog="Other commands: reproduce list [NAME] | reproduce report DIR | "
        "reproduce ledger DIR",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="notebooks (all if none is named)")
    parser.add_argument("--profile", default="smoke", help="smoke, gpu or paper [smoke]")
    parser.add_argument("--seeds", type=seed_list, help="such as 0-2 or 0,3,5")
    parser.add_argument(
        "-p", dest="parameters", action="append", default=[], metavar="KEY=VALUE",
        help="set a parameter; the same key again adds a run for each value",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time [1]")
    parser.add_argument("--out", type=Path, help="output folder [runs/PROFILE]")
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
    if options.store and (options.profile != "smoke" or options.seeds or options.parameters):
        raise ValueError("--store keeps the outputs of the default parameters; give only names")
    out = (options.out or ROOT / "runs" / ("store" if options.store else options.profile)).resolve()
    runs = plan.make_plan(
        options.names,
        profile=options.profile,
        seeds=options.seeds,
        overrides=key_values(options.parameters),
        out=out,
    )
    console = Console()
    with batch.folder_lock(out):
        from helpers import progress, report

        with progress.show(runs, console) as on_event:
            outcomes = batch.execute(
                runs, jobs=options.jobs, timeout=options.timeout,
                fresh=options.fresh or options.store, on_event=on_event,
            )  # fmt: skip
        if options.store:
            from helpers import ledger, store

            for outcome in outcomes:
                if outcome.outcome in (batch.OK, batch.CLAIM_CHANGED):
                    store.store(outcome.run)
                    outcome.outcome = batch.OK
            if ledger.readme().is_file():
                ledger.update_readme()
        page = report.write(out) if list(out.glob("*.ipynb")) else None
    if any(outcome.claims for outcome in outcomes):
        console.print(claim_table(outcomes))
    for outcome in outcomes:
        if outcome.outcome != batch.OK:
            console.print(
                f"[red]{outcome.run.stem}: {outcome.outcome}[/] {escape(outcome.message)}"
            )
    console.print(summary(outcomes), soft_wrap=True)
    console.print(f"Executed notebooks: {shown(out)}", soft_wrap=True)
    if page:
        console.print(f"Report: {shown(page)}", soft_wrap=True)
    return exit_code(outcomes)


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


def exit_code(outcomes: Sequence[batch.Outcome]) -> int:
    """0 if all is well, 130 if the batch was cancelled, else 1."""
    words = {outcome.outcome for outcome in outcomes}
    return 130 if batch.CANCELLED in words else int(words != {batch.OK})


def seed_list(text: str) -> list[int]:
    """``"0-2"`` or ``"0,3,5"`` as a list."""
    if match := re.fullmatch(r"(\d+)-(\d+)", text):
        first, last = map(int, match.groups())
        if last >= first:
            return list(range(first, last + 1))
    elif re.fullmatch(r"\d+(,\d+)*", text):
        return sorted({int(part) for part in text.split(",")})
    raise argparse.ArgumentTypeError(f"seeds look like 0-2 or 0,3,5, got {text!r}")


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


def shown(path: Path) -> str:
    """A path as the reader would type it."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    sys.exit(main())
