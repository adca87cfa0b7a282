"""The picture of a run: the peak of a step by the batch, and by the size of the images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from revgrad.benchmarks import plot
from revgrad.benchmarks.revphiseg.run import Row
from revgrad.benchmarks.revphiseg.settings import Plan
from revgrad.benchmarks.revphiseg.shares import peak

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def peaks(plan: Plan, rows: Sequence[Row]) -> Figure:
    """Draw the peak of each variant against the number of pixels.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = plot.figure((7, 4))
    axes = figure.subplots()
    for variant in plan.variants:
        found = sorted(
            (row.point.batch * row.point.size**2 / 2**20, peak(row) / 2**20)
            for row in rows
            if row.variant == variant and row.memory is not None
        )
        if found:
            axes.plot(*zip(*found, strict=True), "o-", label=variant)
    axes.set(
        title="Peak of a training step with Adam, MiB",
        xlabel="pixels of a batch, 2^20",
        ylim=(0, None),
    )
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False)
    return figure
