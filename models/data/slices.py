"""Volumes as slices of one pixel size and shape, ready for a 2D network.

The pipeline of the prostate experiments of PHiSeg and RevPHiSeg: z-score of the whole volume,
in-plane resampling to one spacing (linear for images, nearest for labels), central crop or padding.
"""

from __future__ import annotations

import torch
from torch import Tensor


def prepare_slices(
    image: Tensor,
    annotators: Tensor,
    spacing: tuple[float, float],
    *,
    new_spacing: float = 0.6,
    size: int = 192,
) -> tuple[Tensor, Tensor]:
    """Normalise a volume, resample its slices, and crop or pad them.

    Args:
        image: ``(slices, rows, columns)``, floats.
        annotators: ``(annotators, slices, rows, columns)``, integer labels.
        spacing: of rows and columns in millimetres.
        new_spacing: of rows and columns of the result.
        size: rows and columns of the result.

    Returns:
        ``(slices, size, size)`` float32, padded with 0, the volume's mean; and ``(annotators,
        slices, size, size)`` of the labels' type, padded with 0.

    Raises:
        TypeError: the annotators are no integers.
        ValueError: shapes or spacings do not fit.
    """
    if annotators.is_floating_point():
        raise TypeError(f"annotators must be integer labels, not {annotators.dtype}")
    if image.dim() != 3 or annotators.shape[1:] != image.shape:
        raise ValueError(
            "expected an image (slices, rows, columns) and annotators (annotators, slices, rows, "
            f"columns) of the same volume, not {tuple(image.shape)} and {tuple(annotators.shape)}"
        )
    target = (new_spacing, new_spacing)
    slices = resample_in_plane(z_score(image), spacing, target, order=1)
    labels = resample_in_plane(annotators, spacing, target, order=0)
    return centre_crop_or_pad(slices, size), centre_crop_or_pad(labels, size)


def z_score(volume: Tensor) -> Tensor:
    """Shift and scale a volume to mean 0 and standard deviation 1, in float32.

    Raises:
        ValueError: all of its values are the same, or some are not finite.
    """
    values = volume.double()
    deviation = values.std(correction=0)
    if not bool(deviation > 0) or not bool(deviation.isfinite()):
        raise ValueError(
            "a volume whose standard deviation is "
            f"{float(deviation)} has no z-score: constant, or with values that are not finite"
        )
    return ((values - values.mean()) / deviation).float()


def resample_in_plane(
    volume: Tensor, spacing: tuple[float, float], new_spacing: tuple[float, float], *, order: int
) -> Tensor:
    """Sample the last two axes at another spacing, about the same centre.

    Args:
        volume: ``(..., rows, columns)``.
        spacing: of rows and columns, in any unit.
        new_spacing: in the same unit.
        order: 1 interpolates linearly (floats), 0 takes the nearest pixel (any type).

    Returns:
        ``(..., new rows, new columns)`` of the same type: as many as the old extent holds, rounded.
        What lies outside by a fraction of a pixel repeats the edge.

    Raises:
        TypeError: linear interpolation of integers.
        ValueError: a spacing is not positive, or the order neither 0 nor 1.
    """
    if order not in (0, 1):
        raise ValueError(f"order must be 0 (nearest) or 1 (linear), not {order}")
    if order == 1 and not volume.is_floating_point():
        raise TypeError(f"order=1 interpolates floats, not {volume.dtype}; labels take order=0")
    if min(*spacing, *new_spacing) <= 0:
        raise ValueError(f"spacings must be positive, not {spacing} and {new_spacing}")
    for axis, old, new in zip((-2, -1), spacing, new_spacing, strict=True):
        volume = _resample_axis(volume, axis, new / old, order)
    return volume


def _resample_axis(volume: Tensor, axis: int, step: float, order: int) -> Tensor:
    """Sample one axis every `step` pixels."""
    size = volume.shape[axis]
    count = max(1, round(size / step))
    places = (torch.arange(count, dtype=torch.float64) - (count - 1) / 2) * step + (size - 1) / 2
    places = places.clamp(0, size - 1).to(volume.device)
    if order == 0:
        # Half way the lower one: round() would alternate.
        return volume.index_select(axis, (places - 0.5).ceil().long())
    low = places.floor().clamp(max=max(size - 2, 0)).long()
    weight = (places - low).to(volume.dtype)
    weight = weight if axis == -1 else weight[:, None]
    high = (low + 1).clamp(max=size - 1)
    return torch.lerp(volume.index_select(axis, low), volume.index_select(axis, high), weight)


def centre_crop_or_pad(volume: Tensor, size: int, value: float = 0) -> Tensor:
    """Bring the last two axes to `size`, each cut or filled with `value` evenly on both sides.

    An odd difference takes or leaves one more at the end.

    Raises:
        ValueError: the size is not positive.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, not {size}")
    for axis in (-2, -1):
        present = volume.shape[axis]
        kept = min(present, size)
        part = volume.narrow(axis, (present - kept) // 2, kept)
        shape = list(part.shape)
        shape[axis] = size
        volume = part.new_full(shape, value)
        volume.narrow(axis, (size - kept) // 2, kept).copy_(part)
    return volume
