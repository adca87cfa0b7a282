"""How well the spread of a structure's volume over samples fits that over annotators."""

from collections.abc import Sequence

import torch
from torch import Tensor

from revgrad.models.metrics.cases import (
    MapSets,
    join_cases,
    label_pairs,
    scored_classes,
)


def volume_crps(
    samples: MapSets,
    annotators: MapSets,
    *,
    num_classes: int,
    spatial_dims: int = 2,
    include_background: bool = False,
    classes: Sequence[int] | None = None,
    unbiased: bool = False,
    voxel_volume: float = 1.0,
    per_class: bool = False,
) -> Tensor:
    """Continuous ranked probability score of structure volumes, averaged over annotators.

    E|V - w| - E|V - V'| / 2 (Gneiting and Raftery 2007), with V the volume of a class in a sample
    and w that in an annotator's mask. In the unit of volume; zero is best, and is reached only
    where annotators agree. With one sample it is the absolute error of the volume.

    Args:
        samples, annotators, num_classes, spatial_dims, include_background, classes: as in
            `generalized_energy_distance`.
        unbiased: leave each sample's difference from itself out of the second mean (Ferro's fair
            score), so that models with different numbers of samples compare.
        voxel_volume: what one pixel or voxel measures, say in mm³. Of cases with different
            spacing, score each by itself.
        per_class: do not average over classes.

    Returns:
        float64 ``(N,)``, or ``(N, classes)``; without N for one image.
    """
    scored = scored_classes(num_classes, include_background, classes)
    cases, single = label_pairs(samples, annotators, num_classes, spatial_dims)
    found = []
    for maps, truth in cases:
        score = voxel_volume * _crps(_volumes(maps, scored), _volumes(truth, scored), unbiased)
        found.append(score if per_class else score.mean())
    return join_cases(found, single)


def _volumes(maps: Tensor, classes: list[int]) -> Tensor:
    """Pixels of each class in each map, ``(classes, K)``."""
    pixels = maps.flatten(1)
    return torch.stack([(pixels == label).sum(1) for label in classes]).double()


def _crps(drawn: Tensor, truth: Tensor, unbiased: bool) -> Tensor:
    """CRPS of each row, ``(rows, S)`` against ``(rows, A)``."""
    count = drawn.shape[1]
    if unbiased and count < 2:
        raise ValueError(
            "unbiased=True compares different samples of a case and needs two, got one"
        )
    error = (drawn[:, :, None] - truth[:, None]).abs().mean((1, 2))
    spread = (drawn[:, :, None] - drawn[:, None]).abs().sum((1, 2))
    return error - spread / (2 * count * (count - 1 if unbiased else count))
