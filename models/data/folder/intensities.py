"""Normalise the intensities of an image, by channel, as nnU-Net does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Voxels that a case gives to the fingerprint at most, so that large cases don't outweigh others.
VOXELS_PER_CASE = 10_000
# A constant image has no standard deviation to divide by.
SMALLEST_STD = 1e-8

Image = NDArray[np.float32]


@dataclass(frozen=True)
class Fingerprint:
    """Intensities of one channel over the foreground of the training cases.

    Attributes:
        low: the 0.5th percentile.
        high: the 99.5th percentile.
        mean: before clipping.
        std: before clipping.
    """

    low: float
    high: float
    mean: float
    std: float


def measure_fingerprint(
    cases: Iterable[tuple[Image, NDArray[Any]]], channels: int
) -> tuple[Fingerprint, ...]:
    """Take the fingerprint of each channel over all voxels that an annotator calls foreground.

    Of a case's foreground voxels `VOXELS_PER_CASE` count, evenly spaced in the order of memory.

    Args:
        cases: images ``(channels, *spatial)`` with annotators' masks ``(annotators, *spatial)``.
        channels: of the images.

    Raises:
        ValueError: No annotator of any case calls anything foreground.
    """
    found: list[Image] = [np.empty((channels, 0), np.float32)]
    for image, annotators in cases:
        voxels = image[:, (annotators > 0).any(axis=0)]
        chosen = np.linspace(0, voxels.shape[1] - 1, min(voxels.shape[1], VOXELS_PER_CASE))
        found.append(voxels[:, chosen.round().astype(np.int64)])
    pooled = np.concatenate(found, axis=1).astype(np.float64)
    if not pooled.size:
        raise ValueError(
            "no training case has any foreground, over which CT intensities would be measured; "
            "take normalisation='zscore' or 'none'"
        )
    low, high = np.percentile(pooled, [0.5, 99.5], axis=1)
    return tuple(
        Fingerprint(float(low[c]), float(high[c]), float(pooled[c].mean()), float(pooled[c].std()))
        for c in range(channels)
    )


def scheme_of(channel_name: str, normalisation: str = "nnunet") -> str:
    """How a channel is normalised: ``ct``, ``zscore``, ``rescale_to_0_1``, ``rgb`` or ``none``.

    Args:
        channel_name: as in dataset.json; ``"nnunet"`` goes by it, as nnU-Net does: ``CT``,
            ``noNorm``, ``rescale_to_0_1``, ``rgb_to_0_1`` in any case, and z-score for all others.
        normalisation: ``"nnunet"``; or ``"zscore"`` or ``"none"`` for all channels.

    Raises:
        ValueError: There is no such normalisation.
    """
    if normalisation in ("zscore", "none"):
        return normalisation
    if normalisation != "nnunet":
        raise ValueError(
            f"normalisation must be 'nnunet', 'zscore' or 'none', not {normalisation!r}"
        )
    names = {"ct": "ct", "nonorm": "none", "rescale_to_0_1": "rescale_to_0_1", "rgb_to_0_1": "rgb"}
    return names.get(channel_name.casefold(), "zscore")


def normalise(
    image: Image, schemes: Sequence[str], fingerprint: Sequence[Fingerprint] = ()
) -> Image:
    """Normalise each channel by its scheme (see `scheme_of`).

    Args:
        image: ``(channels, *spatial)``.
        schemes: of each channel.
        fingerprint: of each channel; needed only for ``ct``.
    """
    result = np.empty_like(image)
    for channel, scheme in enumerate(schemes):
        values = image[channel].astype(np.float64)
        if scheme == "ct":
            known = fingerprint[channel]
            values = (values.clip(known.low, known.high) - known.mean) / max(
                known.std, SMALLEST_STD
            )
        elif scheme == "zscore":
            values = (values - values.mean()) / max(values.std(), SMALLEST_STD)
        elif scheme == "rescale_to_0_1":
            values = (values - values.min()) / max(np.ptp(values), SMALLEST_STD)
        elif scheme == "rgb":
            values = values / 255
        result[channel] = values
    return result
