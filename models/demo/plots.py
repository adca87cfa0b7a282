"""The demo's two pictures. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from torch import Tensor

from revgrad.models.data.organs import ORGANS
from revgrad.models.demo.run import Outcome
from revgrad.models.demo.slices import WINDOWS
from revgrad.models.demo.train import NUDGED
from revgrad.models.figures.canvas import empty_figure, plain_frame
from revgrad.optional import optional_import

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_VARIANT_COLORS = {"plain": "#f0a830", "reversible": "#0b5c9e"}
# One for each organ, to be told apart on grey.
_ORGAN_COLORS = (
    "#d55e00", "#9467bd", "#009e73", "#e6c619", "#56b4e9", "#e7298a", "#f5f0dc", "#8c6d31"
)  # fmt: skip
_ROWS = 3  # held-out slices shown


def draw(outcome: Outcome, folder: Path) -> None:
    """Write ``training.png`` and ``predictions.png``.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    for name, picture in (("training", _training), ("predictions", _predictions)):
        picture(outcome).savefig(folder / f"{name}.png", dpi=150)


def _training(outcome: Outcome) -> Figure:
    """Loss curves and their distance, memory and time."""
    figure = empty_figure(12, 3.4)
    loss, distance, memory, seconds = figure.subplots(1, 4, width_ratios=(3, 3, 1.5, 1.5))
    _losses(loss, outcome.losses)
    _distances(distance, outcome)
    peaks = {variant: report.peak / 2**20 for variant, report in outcome.memory.items()}
    _bars(memory, "Peak memory, MiB", peaks)
    times = {variant: 1000 * median(values) for variant, values in outcome.seconds.items()}
    _bars(seconds, "Time of a step, ms", times)
    for axes in (loss, distance, memory, seconds):
        plain_frame(axes)
    return figure


def _losses(axes: Axes, losses: Mapping[str, list[float]]) -> None:
    # The curves coincide: the first one is drawn wide to be seen behind the second.
    for variant, width in (("plain", 4.0), ("reversible", 1.0)):
        steps = range(1, 1 + len(losses[variant]))
        color = _VARIANT_COLORS[variant]
        axes.plot(steps, losses[variant], color=color, linewidth=width, label=variant)
    axes.set(title="Training loss", xlabel="step", ylim=(0, None))
    axes.legend(frameon=False)


def _distances(axes: Axes, outcome: Outcome) -> None:
    steps = range(1, 1 + outcome.settings.steps)
    for name, color, label in (
        (NUDGED, "0.7", "plain, weights moved"),
        ("reversible", _VARIANT_COLORS["reversible"], "reversible"),
    ):
        axes.plot(steps, outcome.loss_distances(name), color=color, linewidth=1, label=label)
    axes.set(title="Distance from the plain loss", xlabel="step")
    axes.set_yscale("log", nonpositive="mask")
    axes.legend(frameon=False, loc="lower right")


def _bars(axes: Axes, title: str, values: Mapping[str, float]) -> None:
    colors = [_VARIANT_COLORS[variant] for variant in values]
    bars = axes.bar(list(values), list(values.values()), color=colors, width=0.65)
    axes.bar_label(bars, fmt="%.0f", padding=2)
    axes.set_title(title)
    axes.margins(y=0.1)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def _predictions(outcome: Outcome) -> Figure:
    """A few held-out slices: the CT, its labels and the reversible network's prediction."""
    slices = outcome.held_out
    count = len(slices.numbers)
    shown = [(2 * row + 1) * count // (2 * _ROWS) for row in range(_ROWS)]
    figure = empty_figure(9, 8.6)
    grid = figure.subplots(_ROWS, 3)
    for row, i in zip(grid, shown, strict=True):
        overlays = (None, slices.labels[i], outcome.predictions["reversible"][i])
        for axes, overlay in zip(row, overlays, strict=True):
            _slice(axes, slices.images[i, 0], overlay)
        row[0].set_ylabel(f"slice {slices.numbers[i]}")
    low, high = WINDOWS[0]
    titles = (
        f"CT, {low:.0f} to {high:.0f} HU",
        "labels (TotalSegmentator)",
        "prediction (reversible)",
    )
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title)
    _legend(figure, outcome.dice["reversible"])
    return figure


def _slice(axes: Axes, image: Tensor, labels: Tensor | None) -> None:
    """One slice (H, W) in grey, with its labels (H, W) in colour over it."""
    colors = optional_import("matplotlib.colors", "train")
    axes.imshow(image.numpy(), cmap="gray", vmin=-1, vmax=1)
    if labels is not None:
        palette = colors.ListedColormap([(0, 0, 0, 0), *_ORGAN_COLORS])
        axes.imshow(
            labels.numpy(), cmap=palette, vmin=0, vmax=len(ORGANS), alpha=0.7 * (labels > 0).numpy()
        )
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _legend(figure: Figure, dice: Mapping[str, float]) -> None:
    patches = optional_import("matplotlib.patches", "train")
    handles = [
        patches.Patch(facecolor=color, edgecolor="0.5", label=f"{organ}  {dice[organ]:.2f}")
        for organ, color in zip(ORGANS, _ORGAN_COLORS, strict=True)
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=4,
        frameon=False,
        title="Dice of the prediction over all held-out slices",
    )
