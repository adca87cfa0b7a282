"""Sheets: what annotators and samples say of an image, and where the samples are unsure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from revgrad.models.data.case import Case
from revgrad.models.figures.canvas import check_some, class_colors, empty_figure
from revgrad.models.uncertainty import UncertaintyMaps, uncertainty_maps
from revgrad.optional import optional_import

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of a single structure: the annotators' outlines, and the samples'.
ANNOTATOR_COLOR, SAMPLE_COLOR = "#e69f00", "#56b4e9"
PANEL = 1.45  # inches
LABEL_WIDTH = 24  # characters that stand beside a panel
_KINDS = ("annotators", "samples")

MAP_TITLES = {
    "predictive_entropy": "entropy of mean",
    "expected_entropy": "mean entropy",
    "mutual_information": "mutual information",
    "variance": "variance",
    "cross_entropy": "cross-entropy",
}


@dataclass(frozen=True)
class _Row:
    """What a row shows, all of it in two dimensions."""

    label: str
    image: Tensor  # (H, W), or (H, W, 3) in colours
    annotators: Tensor  # (A, H, W)
    samples: Tensor  # (n, H, W)
    maps: UncertaintyMaps  # with a batch axis of one
    region: tuple[slice, slice]  # of the image, what all panels but the first one show


def sheet(
    cases: Sequence[Case],
    probabilities: Sequence[Tensor],
    *,
    classes: Sequence[str],
    caption: str,
    shown: int = 4,
    maps: Sequence[str] = ("predictive_entropy", "mutual_information"),
    margin: int | None = None,
    slice_axis: int = 0,
) -> Figure:
    """A row for each case: image, annotators, samples, their mean, and maps of uncertainty.

    With two classes outlines are drawn and the mean is the probability of the foreground. With more
    each class has a colour, and the mean is the mixture of the colours. A volume is shown by the
    slice with the most foreground, counted over the annotators, or the samples where those have
    none. Annotators with weights are shown in order of weight.

    Args:
        cases: with images ``(channels, *spatial)``; three channels are shown as red, green and
            blue, of any other number the first one in grey.
        probabilities: of each case, ``(n, C, *spatial)``, of each sample:
            ``net.sample(image[None], n)[0].softmax(1)``.
        classes: names of the labels, the background first.
        caption: `CaseDataset.title`, and which model: what the data are stands on every figure.
        shown: at most so many annotators and so many samples; mean and maps are of all samples.
        maps: fields of `UncertaintyMaps`, without the mean.
        margin: show only what annotators or samples mark, and so many pixels around it, in a
            square; the first panel has the whole image and a frame around that part. None shows
            everything everywhere.
        slice_axis: the spatial axis of a volume along which it is cut.

    Raises:
        ValueError: cases, probabilities or classes do not fit together.
    """
    check_some(cases, "case")
    _check(cases, probabilities, classes, shown, maps)
    pairs = zip(cases, probabilities, strict=True)
    rows = [_row(case, drawn, margin, slice_axis) for case, drawn in pairs]
    counts = [min(shown, max(len(getattr(row, kind)) for row in rows)) for kind in _KINDS]
    figure, grid, bars = _grid(rows, 1 + sum(counts), 1 + len(maps))
    for axes, row in zip(grid, rows, strict=True):
        _draw_row(axes, row, counts, len(classes))
    _titles(grid[0], counts, classes, maps)
    _draw_maps(figure, grid[:, 1 + sum(counts) :], bars, rows, classes, maps)
    if len(classes) > 2:
        _legend(figure, classes)
    figure.suptitle(caption, fontsize=10)
    return figure


def _grid(rows: Sequence[_Row], left: int, right: int) -> tuple[Figure, Any, Any]:
    """A figure, a panel for each row and column, and below those on the right one for a scale."""
    heights = [_height(row) for row in rows]
    figure = empty_figure(PANEL * (left + right) + 0.4, PANEL * sum(heights) + 1.0)
    grid = figure.subplots(
        1 + len(rows), left + right, squeeze=False, height_ratios=[*heights, 0.06]
    )
    for axes in grid[-1, :left]:
        axes.remove()
    return figure, grid[:-1], grid[-1, left:]


def _check(
    cases: Sequence[Case],
    probabilities: Sequence[Tensor],
    classes: Sequence[str],
    shown: int,
    maps: Sequence[str],
) -> None:
    if len(cases) != len(probabilities):
        raise ValueError(f"{len(cases)} cases and probabilities of {len(probabilities)}")
    if shown < 1:
        raise ValueError(f"shown must be at least 1, not {shown}")
    if not set(maps) <= set(MAP_TITLES):
        raise ValueError(f"maps must be among {list(MAP_TITLES)}, not {list(maps)}")
    for case, drawn in zip(cases, probabilities, strict=True):
        expected = (len(classes), *case.image.shape[1:])
        if drawn.ndim < 3 or drawn.shape[1:] != expected:
            raise ValueError(
                f"{case.name}: probabilities must be (n, {', '.join(map(str, expected))}), for "
                f"{list(classes)}; got {tuple(drawn.shape)}"
            )


def _row(case: Case, probabilities: Tensor, margin: int | None, slice_axis: int) -> _Row:
    image, annotators = case.image.detach().cpu(), case.annotators.detach().cpu()
    probabilities = probabilities.detach().cpu()
    label = fill(case.name, LABEL_WIDTH)
    if case.weights is not None:
        annotators = annotators[case.weights.cpu().argsort(descending=True, stable=True)]
    if image.ndim == 4:
        index = _fullest(annotators, probabilities.argmax(1), slice_axis)
        image, annotators = (part.select(1 + slice_axis, index) for part in (image, annotators))
        probabilities = probabilities.select(2 + slice_axis, index)
        label += f"\nslice {index}"
    samples = probabilities.argmax(1)
    # Labels that are no class, such as an ignored 255, are no foreground either.
    marked = torch.cat([_known(annotators, probabilities.shape[1]), samples]).gt(0).any(0)
    return _Row(
        label=label,
        image=_displayed(image),
        annotators=annotators,
        samples=samples,
        maps=uncertainty_maps(probabilities[None]),
        region=_region(marked, margin),
    )


def _known(labels: Tensor, num_classes: int) -> Tensor:
    labels = labels.long()
    return torch.where(labels < num_classes, labels, 0)


def _fullest(annotators: Tensor, samples: Tensor, axis: int) -> int:
    """The slice of a volume with the most foreground; the middle one if there is none."""
    for labels in (annotators, samples):
        counts = (labels > 0).sum(0).movedim(axis, 0).flatten(1).sum(1)
        if counts.any():
            return int(counts.argmax())
    return len(counts) // 2


def _displayed(image: Tensor) -> Tensor:
    """``(H, W)``, or ``(H, W, 3)`` of three channels, from 0 to 1."""
    plane = image.movedim(0, -1) if len(image) == 3 else image[0]
    low, high = plane.aminmax()
    return (plane - low) / (high - low).clamp_min(1e-12)


def _region(marked: Tensor, margin: int | None) -> tuple[slice, slice]:
    """A square that holds what is marked, within the image; all of it without a margin."""
    height, width = marked.shape
    if margin is None or not marked.any():
        return slice(0, height), slice(0, width)
    spans = [where.nonzero().aminmax() for where in (marked.any(1), marked.any(0))]
    side = max(int(high - low + 1) for low, high in spans) + 2 * margin
    (top, bottom), (left, right) = spans
    return (
        _around(int(top + bottom + 1) // 2, side, height),
        _around(int(left + right + 1) // 2, side, width),
    )


def _around(middle: int, side: int, size: int) -> slice:
    """So many pixels around one, moved into the image where they would reach out of it."""
    start = max(0, min(middle - side // 2, size - side))
    return slice(start, min(start + side, size))


def _height(row: _Row) -> float:
    """Of a row, in panels: as its tallest one asks for."""
    shapes = (row.image, row.image[row.region])
    return max(shape.shape[0] / shape.shape[1] for shape in shapes)


def _draw_row(axes: Sequence[Axes], row: _Row, counts: Sequence[int], classes: int) -> None:
    """The panels up to the samples; those of the maps get only what they all share."""
    for panel in axes:
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
    _draw_image(axes[0], row)
    # Classes are colours, so what lies under them is grey.
    under = (row.image.mean(-1) if row.image.ndim == 3 else row.image)[row.region]
    start = 1
    for kind, count, color in zip(_KINDS, counts, (ANNOTATOR_COLOR, SAMPLE_COLOR), strict=True):
        labels = getattr(row, kind)[:count]
        for panel, label_map in zip(axes[start:], labels, strict=False):
            _show(panel, under)
            colors = [color] if classes == 2 else class_colors(classes - 1)
            _outline(panel, label_map[row.region], colors)
        for panel in axes[start + len(labels) : start + count]:
            panel.set_box_aspect(_height(row))  # where its title stands
        start += count


def _draw_image(axes: Axes, row: _Row) -> None:
    """The whole image, and where the other panels look."""
    _show(axes, row.image)
    axes.set_ylabel(row.label, fontsize=7)
    rows, columns = row.region
    width, height = columns.stop - columns.start, rows.stop - rows.start
    if (height, width) != row.image.shape[:2]:
        corner = columns.start - 0.5, rows.start - 0.5
        patches = optional_import("matplotlib.patches", "train")
        axes.add_patch(patches.Rectangle(corner, width, height, fill=False, ec="white"))


def _show(axes: Axes, image: Tensor) -> None:
    axes.imshow(image.numpy(), cmap="gray", vmin=0, vmax=1)


def _outline(axes: Axes, labels: Tensor, colors: Sequence[str]) -> None:
    """The edge of every class; of several classes their area, too, since edges coincide."""
    if len(colors) > 1:
        axes.imshow(_painted(labels, colors).numpy())
    for label, color in enumerate(colors, start=1):
        mask = labels == label
        if mask.any() and not mask.all():
            edge = axes.contour(mask.float().numpy(), levels=[0.5], colors=[color], linewidths=1.2)
            if len(colors) == 1:  # bright lines on bright tissue need a dark rim
                effects = optional_import("matplotlib.patheffects", "train")
                edge.set_path_effects([effects.withStroke(linewidth=2.2, foreground="0.2")])


def _painted(labels: Tensor, colors: Sequence[str]) -> Tensor:
    """``(H, W, 4)``: the colours of the classes, transparent where there is none."""
    palette = torch.zeros(1 + len(colors), 4)
    palette[1:] = _rgb(colors, alpha=0.6)
    return palette[_known(labels, len(palette))]


def _rgb(colors: Sequence[str], alpha: float) -> Tensor:
    module = optional_import("matplotlib.colors", "train")
    return torch.tensor([module.to_rgba(color, alpha) for color in colors])


def _titles(
    axes: Sequence[Axes], counts: Sequence[int], classes: Sequence[str], maps: Sequence[str]
) -> None:
    mean = f"P({classes[1]})" if len(classes) == 2 else "mean"
    kinds = [f"{kind} {i + 1}" for kind, n in zip(("annotator", "sample"), counts, strict=True)
             for i in range(n)]  # fmt: skip
    titles = ["image", *kinds, mean, *(MAP_TITLES[name] for name in maps)]
    for panel, title in zip(axes, titles, strict=True):
        panel.set_title(title, fontsize=8)


def _draw_maps(
    figure: Figure,
    grid: Any,
    bars: Sequence[Axes],
    rows: Sequence[_Row],
    classes: Sequence[str],
    maps: Sequence[str],
) -> None:
    """The mean and the maps, one scale for all rows of a column."""
    means = [row.maps.mean[0][:, *row.region] for row in rows]
    if len(classes) == 2:
        _column(figure, grid[:, 0], bars[0], [mean[1] for mean in means], 1.0)
    else:
        bars[0].remove()
        colors = _rgb(["0.15", *class_colors(len(classes) - 1)], 1.0)[:, :3]
        for panel, mean in zip(grid[:, 0], means, strict=True):
            panel.imshow(torch.einsum("chw,cr->hwr", mean.to(colors), colors).clamp(0, 1).numpy())
    for place, name in enumerate(maps, start=1):
        values = [getattr(row.maps, name)[0][row.region] for row in rows]
        top = max(float(value.max()) for value in values)
        _column(figure, grid[:, place], bars[place], values, top or 1.0)


def _column(
    figure: Figure, axes: Sequence[Axes], bar: Axes, values: Sequence[Tensor], top: float
) -> None:
    for panel, value in zip(axes, values, strict=True):
        drawn = panel.imshow(value.numpy(), cmap="viridis", vmin=0, vmax=top)
    ticks = optional_import("matplotlib.ticker", "train").MaxNLocator(3)
    figure.colorbar(drawn, cax=bar, orientation="horizontal", ticks=ticks)
    bar.tick_params(labelsize=7)


def _legend(figure: Figure, classes: Sequence[str]) -> None:
    patches = optional_import("matplotlib.patches", "train")
    handles = [
        patches.Patch(facecolor=color, label=name)
        for name, color in zip(classes[1:], class_colors(len(classes) - 1), strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=8, frameon=False, fontsize=8)
