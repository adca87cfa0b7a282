"""Curves: GED against the number of samples, and how a training went."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from revgrad.models.figures.canvas import (
    LINE_COLORS,
    MARKERS,
    check_some,
    empty_figure,
    plain_frame,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A curve is smoothed over this share of its steps.
SMOOTHED = 0.02
# Of horizontal lines, to be told apart from each other and from the dashed line of a perfect model.
_DASHES: tuple[Any, ...] = (":", "-.", (0, (6, 2, 1, 2, 1, 2)), (0, (1, 4)))


class Estimate(NamedTuple):
    """A mean and its interval."""

    mean: float
    low: float
    high: float


def ged_against_n(
    models: Mapping[str, Mapping[int, Sequence[float]]],
    *,
    perfect: Mapping[int, float] | None = None,
    baselines: Mapping[str, float] | None = None,
    caption: str,
) -> Figure:
    """Squared GED by the number of samples that it was estimated from, a line for each model.

    Args:
        models: name, and for each number of samples (mean, low, high), or an `Estimate`.
        perfect: the same for samples of the true distribution, where it is known.
        baselines: predictions without learning, as horizontal lines.
        caption: what the data are (`CaseDataset.title`) and of what the intervals are.

    Raises:
        ValueError: no model, or an interval that does not hold its mean.
    """
    check_some([*models.values()], "model")
    figure = empty_figure(6.4, 4.6)
    axes = figure.subplots()
    for index, (name, values) in enumerate(models.items()):
        _with_intervals(axes, index, name, values)
    if perfect is not None:
        counts = sorted(perfect)
        heights = [perfect[n] for n in counts]
        axes.plot(counts, heights, "--", color="black", linewidth=1.2, label="perfect model")
    for index, (name, height) in enumerate((baselines or {}).items()):
        style = _DASHES[index % len(_DASHES)]
        axes.axhline(height, color="0.45", linestyle=style, linewidth=1.2, label=name)
    counts = sorted({n for values in [*models.values(), perfect or {}] for n in values})
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(n) for n in counts])
    axes.minorticks_off()
    axes.set(xlabel="samples of an image", ylabel="GED, squared", ylim=(0, None))
    _finish(figure, axes, caption)
    return figure


def read_log(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the JSON lines of a run: an object a line, with ``step`` and what was measured there.

    The last line is left out if it has no end: the run was killed, or writes it now.

    Raises:
        ValueError: another line is no JSON object with a step; the error names it.
    """
    records = []
    lines = Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and not line.endswith("\n"):
            break
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: no JSON ({error})") from None
        if not isinstance(record, dict) or "step" not in record:
            raise ValueError(f"{path}, line {number}: no JSON object with a step")
        records.append(record)
    return records


def training_curves(records: Sequence[Mapping[str, Any]], *, caption: str) -> Figure:
    """Loss, reconstruction and KL of each level, and validation GED by training step.

    Args:
        records: with ``step``, and any of ``loss``, ``reconstruction`` and ``kl`` (a number for
            each level, the finest first) and ``validation_ged``, as `read_log` gives them. What a
            record lacks is not drawn; a panel that none has is left out.
        caption: what was trained on what.
    """
    panels = {
        key: _series(records, key)
        for key in ("loss", "reconstruction", "kl", "validation_ged")
        if any(_levels(record, key) for record in records)
    }
    check_some([*panels], "record with loss, reconstruction, kl or validation_ged")
    figure = empty_figure(3.6 * len(panels) + 0.4, 3.4)
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (key, levels) in zip(row, panels.items(), strict=True):
        _panel(axes, key, levels)
    # The levels' colours are the same in every panel: one legend does.
    handles, labels = max(
        (axes.get_legend_handles_labels() for axes in row), key=lambda found: len(found[1])
    )
    figure.legend(handles, labels, loc="outside lower center", ncols=8, frameon=False, fontsize=9)
    figure.suptitle(caption, fontsize=10)
    return figure


_TITLES = {
    "loss": "Loss",
    "reconstruction": "Reconstruction (cross-entropy)",
    "kl": "KL divergence, nats",
    "validation_ged": "Validation GED, squared",
}


def _panel(axes: Axes, key: str, levels: list[tuple[list[int], list[float]]]) -> None:
    sparse = key == "validation_ged"  # measured now and then: every value is shown as it is
    for level, (steps, values) in enumerate(levels):
        color = LINE_COLORS[level % len(LINE_COLORS)]
        label = f"level {level}" if len(levels) > 1 else None
        if sparse:
            axes.plot(steps, values, "o-", color=color, markersize=3, linewidth=1.2, label=label)
        else:
            axes.plot(steps, values, color=color, linewidth=0.5, alpha=0.3)
            axes.plot(steps, _smooth(values), color=color, linewidth=1.4, label=label)
    axes.set(title=_TITLES[key], xlabel="step")
    if sparse:
        best, step = min(zip(levels[0][1], levels[0][0], strict=True))
        axes.axhline(best, color="0.6", linewidth=0.8, linestyle=":")
        axes.set_xlabel(f"step (best: {best:.3f} at {step})")
    elif all(value > 0 for _, values in levels for value in values):
        axes.set_yscale("log")
    plain_frame(axes)


def _levels(record: Mapping[str, Any], key: str) -> list[float]:
    """A record's numbers under a key: one for each level, or one, or none."""
    value = record.get(key)
    if value is None:
        return []
    return [float(v) for v in value] if isinstance(value, Sequence) else [float(value)]


def _series(records: Sequence[Mapping[str, Any]], key: str) -> list[tuple[list[int], list[float]]]:
    """Steps and values of each level."""
    rows = [(int(record["step"]), _levels(record, key)) for record in records]
    rows = [(step, values) for step, values in rows if values]
    counts = {len(values) for _, values in rows}
    if len(counts) > 1:
        raise ValueError(f"records differ in the number of levels of {key}: {sorted(counts)}")
    return [
        ([step for step, _ in rows], [values[level] for _, values in rows])
        for level in range(counts.pop())
    ]


def _smooth(values: Sequence[float]) -> list[float]:
    """Mean of each value and those around it; at the ends of fewer."""
    reach = int(SMOOTHED * len(values))
    return [fmean(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]


def _with_intervals(
    axes: Axes, index: int, name: str, values: Mapping[int, Sequence[float]]
) -> None:
    counts = sorted(values)
    found = [Estimate(*values[n]) for n in counts]
    for n, (mean, low, high) in zip(counts, found, strict=True):
        if not low <= mean <= high:
            raise ValueError(
                f"{name} at {n} samples: {mean} is not in its interval {low} to {high}"
            )
    color = LINE_COLORS[index % len(LINE_COLORS)]
    # Side by side, since the intervals of models that are alike would hide each other.
    shifted = [n * 2 ** (0.05 * (index % 6)) for n in counts]
    reach = [[v.mean - v.low for v in found], [v.high - v.mean for v in found]]
    axes.errorbar(
        shifted,
        [value.mean for value in found],
        reach,
        color=color,
        marker=MARKERS[index % len(MARKERS)],
        markersize=5,
        linewidth=1.4,
        elinewidth=1,
        capsize=2,
        label=name,
    )


def _finish(figure: Figure, axes: Axes, caption: str) -> None:
    plain_frame(axes)
    figure.suptitle(caption, fontsize=10)  # wider than the axes' title may be
    figure.legend(loc="outside lower center", frameon=False, fontsize=9, ncols=2)
