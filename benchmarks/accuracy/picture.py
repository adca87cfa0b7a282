"""The picture of a run: error against depth, a panel for each network, comparison and precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from revgrad.benchmarks import plot
from revgrad.benchmarks.accuracy.run import EXACT, FLOAT, MEASURED, NOT_INSTALLED, Row
from revgrad.benchmarks.accuracy.settings import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SMALLEST = 1e-8  # below it the axis is linear, so that equality has a place on it
_LARGEST = 1e2  # an error of 1 means that nothing is right any more


def errors(plan: Plan, rows: Sequence[Row], comparisons: Mapping[str, str]) -> Figure:
    """Draw the error of the gradients of all weights.

    Args:
        plan: What was measured.
        rows: What was found.
        comparisons: Field of an outcome -> what it compares with.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    rank = [(network, field) for network in plan.networks for field in comparisons]
    figure = plot.figure((4 * len(plan.precisions), 2.8 * len(rank) + 1))
    grid = figure.subplots(len(rank), len(plan.precisions), squeeze=False, sharex=True)
    for (network, field), panels in zip(rank, grid, strict=True):
        for precision, axes in zip(plan.precisions, panels, strict=True):
            chosen = [r for r in rows if (r.network, r.precision) == (network, precision)]
            _panel(axes, plan, chosen, field)
            axes.set_title(
                f"{network}, {precision}\n{comparisons[field]}", fontsize="small", loc="left"
            )
    for axes in grid[-1]:
        axes.set_xlabel("depth (sub-networks)")
    for axes in grid[:, 0]:
        axes.set_ylabel("relative L2 error")
    lines = [line for axes in grid.flat for line in axes.lines]
    handles = {line.get_label(): line for line in lines if line.get_label() in plan.variants}
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False
    )
    return figure


def _panel(axes: Axes, plan: Plan, rows: Sequence[Row], field: str) -> None:
    """A line for each variant, and a cross near the top where it gave no number."""
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=_SMALLEST)
    axes.set_ylim(-_SMALLEST / 5, _LARGEST)
    axes.set_xticks(plan.depths, list(map(str, plan.depths)), minor=False)
    axes.set_xticks([], minor=True)
    axes.set_yticks([0, *(10.0**n for n in range(-8, 3, 2))])
    axes.spines[["top", "right"]].set_visible(False)
    for variant in plan.variants:
        own = [row for row in rows if row.variant == variant]
        heights = {
            row.depth: getattr(row.total, field)["weights"]
            for row in own
            if row.total.status == MEASURED
        }
        style = _style(variant, plan.variants)
        if heights:
            axes.plot(list(heights), list(heights.values()), label=variant, **style)
        lost = [row.depth for row in own if row.total.status not in (MEASURED, NOT_INSTALLED)]
        # One below the other, so that each can be seen.
        height = _LARGEST / 4 ** plan.variants.index(variant)
        axes.plot(lost, [height] * len(lost), "x", color=style["color"], markersize=7)


def _style(variant: str, variants: Sequence[str]) -> dict[str, Any]:
    """Ours as a wide line with dots; the others as dashes that take turns where they coincide."""
    style = plot.style(variant) | {"zorder": 2}
    others = [name for name in variants if name not in ("plain", FLOAT, EXACT)]
    if variant not in others:
        return style | {"marker": "o"}
    dash = 3 * others.index(variant), (3, 3 * len(others) - 3)
    return style | {"linestyle": dash if len(others) > 1 else "--", "zorder": 3}
