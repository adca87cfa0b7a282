"""Pictures of measurements. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from revgrad.benchmarks.peers import ADAPTORS
from revgrad.models.figures.canvas import empty_figure, plain_frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from revgrad.benchmarks.sequence.run import Row
    from revgrad.benchmarks.sequence.settings import Settings

_OURS = {
    "revgrad": "#0b5c9e",
    "revgrad-exact": "#3fa7d6",
    "revgrad-fused": "#08306b",
    "revgrad-exact-fused": "#9ecae1",
    "revgrad-compiled": "#6a51a3",
    "revgrad-one-graph": "#9e9ac8",
}
# One for each of the others, in the order of the table of adaptors.
_OTHERS = (
    "#222222", "#666666", "#bbbbbb", "#d55e00", "#e69f00", "#999999", "#8c6d31", "#009e73",
    "#7fbf3f", "#cc79a7", "#9467bd", "#aa8f66", "#5f9ea0",
)  # fmt: skip


def memory_and_time(settings: Settings, rows: Sequence[Row]) -> Figure:
    """Memory against depth, and the deepest sequence's time against plain training.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    picture = figure((11, 4.2))
    memory, time = picture.subplots(1, 2, width_ratios=(3, 2))
    _memory(memory, settings, rows)
    _time(time, rows)
    for axes in (memory, time):
        plain_frame(axes)
    return picture


def _memory(axes: Axes, settings: Settings, rows: Sequence[Row]) -> None:
    """A line for each variant."""
    for variant in ADAPTORS:
        heights = {r.depth: r.above for r in rows if r.variant == variant and r.above is not None}
        if heights:
            axes.plot(
                list(heights),
                list(heights.values()),
                "o-",
                label=variant,
                **style(variant),
            )
    unit = settings.activation / 2**20
    axes.set(
        title=f"Peak memory above parameters and gradients, A = {unit:g} MiB",
        xlabel="depth (sub-networks)",
        ylabel="A (one full activation)",
        ylim=(0, None),
    )
    axes.set_xticks(sorted({row.depth for row in rows}))
    if axes.lines:
        axes.legend(frameon=False, ncols=2)


def _time(axes: Axes, rows: Sequence[Row]) -> None:
    """A bar for each variant."""
    deepest = max(row.depth for row in rows)
    ratios = {
        row.variant: row.time["wall_ratio"]
        for row in rows
        if row.depth == deepest and row.time is not None and "wall_ratio" in row.time
    }
    names = list(reversed(ratios))
    bars = axes.barh(names, [ratios[name] for name in names], color=list(map(color, names)))
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.axvline(1, color="0.7", linewidth=1, zorder=0)
    axes.set_title(f"Time of a step against plain, depth {deepest}")
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)


def figure(size: tuple[float, float]) -> Figure:
    """An empty figure; size in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    return empty_figure(*size, extra="bench")


def style(variant: str) -> dict[str, Any]:
    """How an adaptor's line is drawn: ours wider, and on top where lines coincide."""
    return {
        "color": color(variant),
        "linewidth": 3 if variant in _OURS else 1.5,
        "zorder": 3 if variant in ("plain", *_OURS) else 2,
    }


def color(variant: str) -> str:
    """The same for an adaptor in every picture."""
    others = [name for name in ADAPTORS if name not in _OURS]
    return _OURS.get(variant) or _OTHERS[others.index(variant)]
