"""Overlap of every label map of one set with every one of another: IoU and Dice by class."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# One-hot masks are made of a slice of the image at a time: this many bytes for both sets.
SLICE_BYTES = 16 * 2**20


class Overlap(NamedTuple):
    """Pixel counts by class, in float64.

    Attributes:
        both: ``(classes, K, L)``, in map k of the first and in map l of the second set.
        first: ``(classes, K)``, in map k of the first set.
        second: ``(classes, L)``, in map l of the second set.
    """

    both: Tensor
    first: Tensor
    second: Tensor

    def iou(self, empty: float) -> Tensor:
        """Intersection over union ``(classes, K, L)``; `empty` where neither map has the class."""
        either = self.first[:, :, None] + self.second[:, None] - self.both
        return torch.where(either == 0, empty, self.both / either)

    def dice(self, empty: float) -> Tensor:
        """Dice coefficient ``(classes, K, L)``; `empty` where neither map has the class."""
        total = self.first[:, :, None] + self.second[:, None]
        return torch.where(total == 0, empty, 2 * self.both / total)


def count_overlap(first: Tensor, second: Tensor, classes: Sequence[int]) -> Overlap:
    """Count the pixels that maps of two sets share, ``(K, *spatial)`` and ``(L, *spatial)``.

    A matrix product of one-hot masks for each class. float32 holds each product's counts exactly,
    a slice being far below 2^24 pixels; they are added up in float64.
    """
    first, second = first.flatten(1), second.flatten(1)
    maps, others = len(first), len(second)
    counts = torch.zeros(
        len(classes), maps + 1, others + 1, dtype=torch.float64, device=first.device
    )
    # Under autocast the product would be rounded to half precision.
    with torch.autocast(first.device.type, enabled=False):
        for pixels in _slices(first.shape[1], maps + others):
            left, right = first[:, pixels], second[:, pixels]
            for row, label in enumerate(classes):
                mask = _mask(left, label)
                other = mask if second is first else _mask(right, label)
                counts[row, :-1, :-1] += mask @ other.T
                counts[row, :-1, -1] += mask.sum(1)
                counts[row, -1, :-1] += other.sum(1)
    return Overlap(counts[:, :-1, :-1], counts[:, :-1, -1], counts[:, -1, :-1])


def iou_distance(first: Tensor, second: Tensor, classes: Sequence[int], empty: float) -> Tensor:
    """One minus the IoU averaged over `classes`, ``(K, L)``.

    With ``empty=nan`` a class that neither map has is left out of their average, and a pair
    without any of the classes is NaN.
    """
    return 1 - count_overlap(first, second, classes).iou(empty).nanmean(0)


def _mask(labels: Tensor, label: int) -> Tensor:
    return (labels == label).to(torch.float32)


def _slices(pixels: int, maps: int) -> Iterator[slice]:
    # Four bytes of a mask and one of the comparison it is made of.
    step = max(1, SLICE_BYTES // (5 * maps))
    return (slice(start, start + step) for start in range(0, pixels, step))
