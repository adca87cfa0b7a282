"""The picture of a run: memory and time against depth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from revgrad.benchmarks import plot
from revgrad.benchmarks.iunet_table1.networks import VARIANTS
from revgrad.benchmarks.iunet_table1.run import Row
from revgrad.benchmarks.iunet_table1.settings import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def memory_and_time(plan: Plan, rows: Sequence[Row]) -> Figure:
    """Draw the peak of each variant, and the time of the memory-efficient ones by their base.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = plot.figure((10, 4))
    memory, time = figure.subplots(1, 2)
    efficient = [name for name in plan.variants if VARIANTS[name].base != name]
    _lines(memory, plan.variants, rows, _peak)
    _lines(time, efficient, rows, _ratio)
    memory.set(title="Peak memory without scratch, MiB", ylim=(0, None))
    time.set(title="Time of a step by plain training of the same modules")
    time.axhline(1, color="0.7", linewidth=1, zorder=0)
    for axes in (memory, time):
        axes.set(xlabel="coupling blocks of each level and side", xticks=plan.depths)
        axes.spines[["top", "right"]].set_visible(False)
    if memory.lines:
        memory.legend(frameon=False)
    return figure


def _lines(
    axes: Axes, variants: Sequence[str], rows: Sequence[Row], value: Callable[[Row], float | None]
) -> None:
    """A line for each variant, dashed for ordinary autograd of the modules of another one."""
    for name in variants:
        found = {row.depth: value(row) for row in rows if row.variant == name}
        heights = {depth: height for depth, height in found.items() if height is not None}
        if heights:
            axes.plot(list(heights), list(heights.values()), label=name, **_style(name))


def _style(name: str) -> dict[str, Any]:
    """Solid for the memory-efficient ones, dotted if they step; dashed for their base."""
    base = VARIANTS[name].base
    efficient = next(v for v in VARIANTS if VARIANTS[v].base == base and v != base)
    line = ":" if VARIANTS[name].steps else "--" if name == base else "-"
    return plot.style(efficient) | {"marker": "o", "linestyle": line}


def _peak(row: Row) -> float | None:
    return None if row.memory is None else row.memory["peak_without_scratch"] / 2**20


def _ratio(row: Row) -> float | None:
    return None if row.time is None else row.time.get("wall_ratio")
