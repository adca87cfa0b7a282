"""Overlap of every label map with every other: IoU and Dice by class, for two sets of maps."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# One-hot masks are made of a slice of the image at a time, of this many bytes.
SLICE_BYTES = 8 * 2**20


class Overlap(NamedTuple):
    """Pixel counts by class, in float64.

    Attributes:
        both: ``(classes, K, L)``, in map k of the first and in map l of the second set.
        sum: ``(classes, K, L)``, in map k plus in map l.
    """

    both: Tensor
    sum: Tensor

    def iou(self, empty: float) -> Tensor:
        """Intersection over union, `empty` where neither map has the class."""
        return torch.where(self.sum == 0, empty, self.both / (self.sum - self.both))

    def dice(self, empty: float) -> Tensor:
        """Dice coefficient, `empty` where neither map has the class."""
        return torch.where(self.sum == 0, empty, 2 * self.both / self.sum)


def overlap_of_all(sets: Sequence[Tensor], classes: Sequence[int]) -> Overlap:
    """Overlap of all maps of all sets ``(K, *spatial)``, one after the other, with all."""
    return _overlap(sets, classes, slice(None), slice(None))


def overlap(first: Tensor, second: Tensor, classes: Sequence[int]) -> Overlap:
    """Overlap of the maps of one set ``(K, *spatial)`` with those of another, ``(L, *spatial)``."""
    return _overlap([first, second], classes, slice(len(first)), slice(len(first), None))


def iou_distances(sets: Sequence[Tensor], classes: Sequence[int], empty: float) -> Tensor:
    """One minus the IoU averaged over `classes`, of all maps of all sets with all.

    With ``empty=nan`` a class that neither map has is left out of their average, and a pair
    without any of the classes is NaN.
    """
    return 1 - overlap_of_all(sets, classes).iou(empty).nanmean(0)


def iou_distance(first: Tensor, second: Tensor, classes: Sequence[int], empty: float) -> Tensor:
    """`iou_distances` of the maps of one set with those of another, ``(K, L)``."""
    return 1 - overlap(first, second, classes).iou(empty).nanmean(0)


def _overlap(
    sets: Sequence[Tensor], classes: Sequence[int], rows: slice, columns: slice
) -> Overlap:
    """Overlap of some maps with some, by a matrix product of one-hot masks for each class.

    float32 holds the counts of a slice exactly, as it is far below 2^24 pixels; they are added up
    in float64.
    """
    flat = [maps.flatten(1) for maps in sets]
    total, pixels = sum(map(len, flat)), flat[0].shape[1]
    size = torch.zeros(len(classes), total, dtype=torch.float64, device=flat[0].device)
    both = size.new_zeros(len(classes), len(size[0, rows]), len(size[0, columns]))
    # Four bytes of a mask, and one of the comparison that torch makes it of.
    step = min(pixels, max(1, SLICE_BYTES // (5 * total)))
    masks = size.new_empty(total, step, dtype=torch.float32)
    # Under autocast the product would be rounded to half precision.
    with torch.autocast(size.device.type, enabled=False):
        for start in range(0, pixels, step):
            parts = [maps[:, start : start + step] for maps in flat]
            mask = masks[:, : parts[0].shape[1]]
            for index, label in enumerate(classes):
                for part, out in zip(parts, mask.split([*map(len, flat)]), strict=True):
                    torch.eq(part, label, out=out)
                both[index] += mask[rows] @ mask[columns].T
                size[index] += mask.sum(1)
    return Overlap(both, size[:, rows, None] + size[:, None, columns])
