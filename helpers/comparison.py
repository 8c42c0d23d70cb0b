"""Methods at several costs on the same test images: a table, a curve, and paired differences."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from helpers.claims import Paired, paired
from helpers.classify import hits
from helpers.plots import color


@dataclass
class Row:
    """One method at one cost: a share of the full one, and 1 or 0 for each test image."""

    name: str
    target: float | None
    cost: float
    hits: Tensor

    @property
    def top1(self) -> float:
        """Accuracy in percent."""
        return 100 * self.hits.mean().item()


class Comparison:
    """Rows of several methods; repeats of a method have the same name and target."""

    def __init__(self):
        self.rows: list[Row] = []

    def add(self, name: str, target: float | None, cost: float, hits: Tensor) -> None:
        """Add a row; hits: float [n], 1 where a test image was classified correctly."""
        self.rows.append(Row(name, target, float(cost), hits))

    def measure(self, name: str, target: float | None, cost: float, forward, data, session) -> None:
        """Add the row of forward(images) -> logits on the test images of a data set."""
        self.add(name, target, cost, hits(forward, data, session))

    def of(self, name: str, target: float | None) -> list[Row]:
        """All repeats of a method at a target."""
        return [row for row in self.rows if (row.name, row.target) == (name, target)]

    def lead(self, name: str, other: str, target: float) -> Paired:
        """Difference in points, paired by test image, each averaged over the repeats."""
        ours, theirs = (
            torch.stack([row.hits for row in self.of(n, target)]).mean(0) for n in (name, other)
        )
        return paired(100 * ours, 100 * theirs)

    def print_table(self, first: str, uncompressed: Sequence[float]) -> None:
        """Print cost and accuracy of every repeat, and the lead of method `first` over the rest.

        uncompressed: accuracy of the full network in every repeat [%].
        """
        keys = dict.fromkeys((r.target, r.name) for r in self.rows if r.target is not None)
        print(
            f"{'target':>6}  {'method':<20} {'cost':<14} {'top-1 [%]':<12} lead of {first} [points]"
        )
        full = " ".join(f"{top1:.1f}" for top1 in uncompressed)
        print(f"{'':>6}  {'uncompressed':<20} {'1':<14} {full}")
        for target, name in keys:
            rows = self.of(name, target)
            cost = " ".join(f"{row.cost:.3f}" for row in rows)
            top1 = " ".join(f"{row.top1:.1f}" for row in rows)
            lead = "" if name == first else self.lead(first, name, target)
            print(f"{target:>6}  {name:<20} {cost:<14} {top1:<12} {lead}")

    def draw(self, uncompressed: float, highlight: str, scattered: Sequence[str] = ()) -> Figure:
        """Accuracy over cost: a line for each method through the means of its repeats.

        uncompressed: accuracy of the full network [%], a star. highlight: the thick line.
        scattered: methods without a line, one point for each row.
        """
        figure, axis = plt.subplots(figsize=(7.5, 4.2))
        for name in dict.fromkeys(row.name for row in self.rows):
            mine = [row for row in self.rows if row.name == name]
            groups = [[row] for row in mine]
            look = {"ls": "none", "alpha": 0.45, "zorder": 1}
            if name not in scattered:
                groups = [self.of(name, target) for target in {row.target for row in mine}]
                look = {"lw": 3.5, "ms": 8, "zorder": 3} if name == highlight else {"lw": 1.3}
            points = sorted((fmean(r.cost for r in g), fmean(r.top1 for r in g)) for g in groups)
            axis.plot(*zip(*points, strict=True), marker="o", label=name, color=color(name), **look)
        axis.plot(1, uncompressed, "*", ms=12, color=color("uncompressed"), label="uncompressed")
        axis.set(xlabel="cost (share of the full multiply-adds)", ylabel="top-1 accuracy [%]")
        axis.legend(fontsize=8)
        return figure
