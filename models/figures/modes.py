"""How often a model draws each mode of a known truth, and how often each class switches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from revgrad.models.figures.canvas import (
    LINE_COLORS,
    MARKERS,
    check_some,
    empty_figure,
    plain_frame,
)
from revgrad.models.metrics import total_variation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def mode_shares(
    models: Mapping[str, Tensor],
    truth: Tensor,
    *,
    switches: Sequence[str],
    switch_truth: Tensor,
    switched: Mapping[str, Tensor],
    draws: int | None = None,
    caption: str,
) -> Figure:
    """Frequency of each mode beside the truth, and of each class's switch by itself.

    Bars are the truth, the most probable mode on the left; markers are models. The legend gives
    each model's total variation distance from the truth over the modes.

    Args:
        models: name and ``(M,)`` frequencies of the modes (`mode_frequencies`, averaged).
        truth: ``(M,)`` probabilities of the modes.
        switches: names of the classes that switch.
        switch_truth: ``(switches,)``, how often each of them does.
        switched: of each model, ``(switches,)``, how often each does (`switch_shares`, averaged).
        draws: number of samples that the frequencies are of: error bars on the truth then span
            two standard deviations of such frequencies, if the draws are independent.
        caption: what the data are, and how many samples were drawn.

    Raises:
        ValueError: numbers of modes, classes or models do not fit together.
    """
    check_some([*models], "model")
    if models.keys() != switched.keys():
        raise ValueError(f"models {list(models)} and switched {list(switched)} are not the same")
    shares = {
        f"{name}: total variation {total_variation(found, truth).item():.3f}": found
        for name, found in models.items()
    }
    _check_switches(switches, switch_truth, switched)
    figure = empty_figure(11, 3.8)
    left, right = figure.subplots(1, 2, width_ratios=(max(3, len(truth) / 6), 2))
    order = truth.argsort(descending=True, stable=True)
    _bars(left, truth[order], {name: found[order] for name, found in shares.items()}, draws)
    left.set(xlabel="mode, by its probability", ylabel="frequency")
    left.set_xticks(range(len(truth)), [str(int(mode)) for mode in order], fontsize=7)
    _bars(right, switch_truth, switched, draws)
    right.set(ylabel="share that switches")
    right.set_xticks(range(len(switches)), switches, rotation=20, fontsize=8)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", frameon=False, fontsize=9, ncols=4)
    figure.suptitle(caption, fontsize=10)
    return figure


def _check_switches(switches: Sequence[str], truth: Tensor, switched: Mapping[str, Tensor]) -> None:
    for name, values in {"switch_truth": truth, **switched}.items():
        if values.shape != (len(switches),):
            raise ValueError(
                f"{name} must have a number for each of {list(switches)}, got {tuple(values.shape)}"
            )


def _bars(axes: Axes, truth: Tensor, models: Mapping[str, Tensor], draws: int | None) -> None:
    heights = truth.tolist()
    spread = None
    if draws is not None:
        spread = [2 * math.sqrt(p * (1 - p) / draws) for p in heights]
    axes.bar(
        range(len(heights)),
        heights,
        color="0.85",
        yerr=spread,
        error_kw={"ecolor": "0.55", "elinewidth": 1},
        label="truth",
    )
    places = torch.linspace(-0.25, 0.25, len(models) + 2)[1:-1].tolist()
    for index, (place, (name, found)) in enumerate(zip(places, models.items(), strict=True)):
        axes.plot(
            [place + i for i in range(len(heights))],
            found.tolist(),
            linestyle="none",
            marker=MARKERS[index % len(MARKERS)],
            markersize=4,
            color=LINE_COLORS[index % len(LINE_COLORS)],
            label=name,
        )
    axes.set(ylim=(0, None), xlim=(-0.7, len(heights) - 0.3))
    plain_frame(axes)
