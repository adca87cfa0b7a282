"""An empty figure, how to write one, and the colours that all figures share. Needs matplotlib."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from revgrad.optional import optional_import

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito 2008, without black: told apart with any colour vision. The order is ours: what is
# drawn over grey images comes first in bright colours.
COLORS = ("#e69f00", "#56b4e9", "#d55e00", "#009e73", "#cc79a7", "#0072b2", "#f0e442")
# The same thing drawn for models, for which yellow on white is too pale.
LINE_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
MARKERS = "osD^vP"


def empty_figure(width: float, height: float, extra: str = "train") -> Figure:
    """A figure, in inches, that needs no display and leaves pyplot's state alone.

    Raises:
        MissingExtraError: matplotlib is not installed; `extra` brings it.
    """
    module = optional_import("matplotlib.figure", extra)
    made: Figure = module.Figure(figsize=(width, height), layout="constrained")
    return made


def save(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 150) -> Path:
    """Write a figure, whole or not at all; the suffix says the format (.png, .pdf, .svg).

    Raises:
        ValueError: matplotlib does not write this format.
        FileNotFoundError: there is no such folder.
    """
    path = Path(path)
    formats = figure.canvas.get_supported_filetypes()
    if path.suffix[1:] not in formats:
        raise ValueError(f"the figure's name must end in one of {sorted(formats)}, not {path.name}")
    # In the same folder, so that it can be renamed over the old file in one go.
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        figure.savefig(name, dpi=dpi)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    return path


def plain_frame(axes: Axes) -> None:
    """Leave only the two axes of a diagram that carry numbers."""
    axes.spines[["top", "right"]].set_visible(False)


def class_colors(count: int) -> list[str]:
    """A colour for each class but the background; beyond seven, hues that only differ somewhat."""
    if count <= len(COLORS):
        return list(COLORS[:count])
    colors = optional_import("matplotlib.colors", "train")
    palette = optional_import("matplotlib", "train").colormaps["turbo"]
    # Neighbours in number are far apart in hue: by the golden ratio.
    return [colors.to_hex(palette(0.05 + 0.9 * (0.618034 * i % 1))) for i in range(count)]


def check_some(values: Sequence[object], what: str) -> None:
    """Refuse to draw nothing."""
    if not values:
        raise ValueError(f"there is nothing to draw: no {what}")
