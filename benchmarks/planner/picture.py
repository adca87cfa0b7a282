"""The picture of a run: memory against time, a line for each variant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from revgrad.benchmarks import plot
from revgrad.benchmarks.planner.run import Row
from revgrad.benchmarks.planner.settings import Plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def memory_against_time(plan: Plan, rows: Sequence[Row]) -> Figure:
    """Draw every point; those of a variant are joined in the order of their budgets.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = plot.figure((7.5, 5))
    axes = figure.subplots()
    for variant in dict.fromkeys(row.variant for row in rows):
        points = [
            (row.memory["peak_without_scratch"] / 2**20, row.time["wall_ratio"])
            for row in sorted(rows, key=lambda row: row.budget)
            if row.variant == variant and row.memory is not None and row.time is not None
        ]
        if points:
            memory, time = zip(*points, strict=True)
            axes.plot(memory, time, "o-", label=variant, **plot.style(variant))
    axes.set(
        title=f"A step of {plan.depth} sub-networks within budgets",
        xlabel="peak memory without scratch, MiB",
        ylabel="time of a step by that of plain",
        xlim=(0, None),
    )
    axes.axhline(1, color="0.7", linewidth=1, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False)
    return figure
