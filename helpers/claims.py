"""Claims: the machine-checked claim table of a notebook, and the paired statistics behind it.

The table travels inside the executed notebook as a display bundle with its own MIME type, so that
the report and the ledger read executed notebooks and need no side file.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

MIME = "application/vnd.reproduce.claims+json"

REPRODUCED = "reproduced"
NOT_REPRODUCED = "not reproduced"
NOT_TESTABLE = "not testable at this scale"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, NOT_TESTABLE)


@dataclass(frozen=True)
class Claim:
    """One row: what the paper says, what was measured, the criterion and its verdict."""

    id: str
    statement: str
    paper: str
    criterion: str
    measured: str
    verdict: str


class Claims:
    """Collects the claims of one notebook.

    >>> claims = Claims("example")
    >>> claims.check("C1", "a beats b", paper="+1.0 (table 1)", criterion="a - b > 0",
    ...              measured="+0.4", holds=1.4 - 1.0 > 0)
    'reproduced'
    >>> claims.show()
    C1  reproduced  a - b > 0
    """

    def __init__(self, notebook: str):
        self.notebook = notebook
        self.rows: list[Claim] = []

    def check(
        self,
        id: str,
        statement: str,
        *,
        paper: str,
        criterion: str,
        measured: str,
        holds: Any,
        testable: bool = True,
    ) -> str:
        """Judge one claim and return its verdict.

        Args:
            id: short and unique in the notebook, such as "C2".
            statement: the paper's claim in one line.
            paper: the paper's number and where it stands.
            criterion: the condition in words or symbols, with no measured number in it.
            measured: our numbers.
            holds: the condition, computed from what was measured: bool, NumPy or torch boolean.
            testable: False when the parameters of this run cannot decide the claim.

        Raises:
            ValueError: the id was used before.
            TypeError: ``holds`` is not a boolean (a number or None would hide a mistake).
        """
        if any(row.id == id for row in self.rows):
            raise ValueError(f"claim {id} was checked before")
        truth = holds.item() if hasattr(holds, "item") else holds
        if not isinstance(truth, bool):
            raise TypeError(f"claim {id}: holds must be a boolean, got {holds!r}")
        verdict = (REPRODUCED if truth else NOT_REPRODUCED) if testable else NOT_TESTABLE
        self.rows.append(Claim(id, statement, paper, criterion, measured, verdict))
        return verdict

    def table(self) -> None:
        """Display the whole table, with our numbers, and the bundle that the report reads."""
        from IPython.display import display

        payload = {"notebook": self.notebook, "claims": [asdict(row) for row in self.rows]}
        bundle = {MIME: payload, "text/html": self.to_html(), "text/plain": self.to_text()}
        display(bundle, raw=True)

    def show(self) -> None:
        """Print one line a claim: id, verdict, criterion. The same on every machine."""
        first = max((len(row.id) for row in self.rows), default=0)
        second = max((len(row.verdict) for row in self.rows), default=0)
        for row in self.rows:
            print(f"{row.id:<{first}}  {row.verdict:<{second}}  {row.criterion}")

    def to_text(self) -> str:
        """The table as plain text, one claim a line."""
        return "\n".join(
            f"{row.id}: {row.verdict} | {row.statement} | paper: {row.paper} | ours: {row.measured}"
            for row in self.rows
        )

    def to_html(self) -> str:
        """The table as HTML, without styles of its own."""
        return to_html([asdict(row) for row in self.rows])


COLUMNS = {
    "id": "", "statement": "claim", "paper": "paper", "measured": "ours",
    "criterion": "criterion", "verdict": "verdict",
}  # fmt: skip


def to_html(rows: Sequence[dict[str, str]]) -> str:
    """Claim rows (as in the bundle) as an HTML table; verdicts carry a class of their own."""
    head = "".join(f"<th>{title}</th>" for title in COLUMNS.values())
    body = "".join(
        "<tr>"
        + "".join(
            f'<td style="text-align:left" class="{row["verdict"].replace(" ", "-")}">'
            f"{html.escape(row[key])}</td>"
            for key in COLUMNS
        )
        + "</tr>"
        for row in rows
    )
    return f'<table class="claims"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def from_notebook(notebook) -> list[dict[str, str]]:
    """The claim rows inside an executed notebook (the last table wins), or an empty list.

    Rows that are no claims (other fields, other types, another verdict) are left out.
    """
    rows: list[Any] = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            payload = output.get("data", {}).get(MIME)
            if isinstance(payload, dict) and isinstance(payload.get("claims"), list):
                rows = payload["claims"]
    return [dict(row) for row in rows if _is_claim(row)]


def _is_claim(row: Any) -> bool:
    names = {field.name for field in fields(Claim)}
    return (
        isinstance(row, dict)
        and set(row) == names
        and all(isinstance(value, str) for value in row.values())
        and row["verdict"] in VERDICTS
    )


@dataclass(frozen=True)
class Paired:
    """Mean of paired differences with its 95 % interval; ``str()`` prints all three."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def paired(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> Paired:
    """Mean of ``a - b`` over pairs with its Student t interval.

    Args:
        a, b: measurements on the same seeds or samples, in the same order; at least one pair.
        confidence: coverage of the interval. With a single pair the interval is infinite.

    Raises:
        ValueError: different lengths or no pair.
    """
    import numpy as np
    from scipy import stats

    if len(a) != len(b) or len(a) == 0:
        raise ValueError(f"need equally many measurements, at least one: got {len(a)} and {len(b)}")
    difference = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    mean, n = float(difference.mean()), len(difference)
    if n == 1:
        return Paired(mean, -math.inf, math.inf, 1)
    error = float(difference.std(ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * error
    return Paired(mean, mean - half, mean + half, n)
