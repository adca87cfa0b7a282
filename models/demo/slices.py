"""The sample volume as training and held-out slices."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from revgrad.models.data.organs import OrganCT

# Soft tissue, and a wide one that tells lung from gut gas and bone from cartilage.
WINDOWS = ((-160.0, 240.0), (-1000.0, 600.0))


@dataclass(frozen=True)
class Slices:
    """Axial slices: ``images`` (N, windows, H, W) in [-1, 1], ``labels`` (N, H, W) int64.

    ``numbers`` are their places in the volume.
    """

    images: Tensor
    labels: Tensor
    numbers: tuple[int, ...]


def split(volume: OrganCT, held_out_every: int) -> tuple[Slices, Slices]:
    """Slices to train on, and every ``held_out_every``-th one apart."""
    images = torch.stack([_window(volume.hounsfield, *window) for window in WINDOWS], 1)
    labels = volume.organs()
    # Starting in the middle of the first stretch leaves training slices on both sides of each.
    held_out = set(range(held_out_every // 2, len(images), held_out_every))

    def pick(numbers: list[int]) -> Slices:
        return Slices(images[numbers], labels[numbers], tuple(numbers))

    return pick([i for i in range(len(images)) if i not in held_out]), pick(sorted(held_out))


def batches(
    slices: Slices, count: int, size: int, crop: tuple[int, int], seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Random crops with random contrast and brightness, the same ones for the same seed.

    No mirroring: which side the liver is on is what tells it from the spleen.

    Yields:
        ``count`` times images (size, windows, *crop) and labels (size, *crop).
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        pairs = [_crop(slices, crop, generator) for _ in range(size)]
        images = torch.stack([image for image, _ in pairs])
        scale, shift = 0.1 * torch.randn(2, size, 1, 1, 1, generator=generator)
        yield images * (1 + scale) + shift, torch.stack([labels for _, labels in pairs])


def _crop(
    slices: Slices, crop: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    def below(limit: int) -> int:
        return int(torch.randint(limit, (), generator=generator))

    slice_ = below(len(slices.images))
    top, left = (
        below(full - part + 1) for full, part in zip(slices.labels.shape[1:], crop, strict=True)
    )
    area = (..., slice(top, top + crop[0]), slice(left, left + crop[1]))
    return slices.images[slice_][area], slices.labels[slice_][area]


def _window(hounsfield: Tensor, low: float, high: float) -> Tensor:
    return ((hounsfield.float() - low) / (high - low) * 2 - 1).clamp(-1, 1)
