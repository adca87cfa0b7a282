"""What the generalized energy distance can be where the truth is known, without drawing from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from revgrad.models.metrics.cases import (
    MapSets,
    check_empty,
    join_cases,
    label_cases,
    scored_classes,
)
from revgrad.models.metrics.overlap import iou_distances


class GEDLimits(NamedTuple):
    """What the squared generalized energy distance of an image can be, ``(N,)`` each, or scalars.

    Attributes:
        perfect: its expectation for a model that draws from the truth.
        single_mode: the best one map of the truth can do: a perfect deterministic network.
    """

    perfect: Tensor
    single_mode: Tensor


def ged_limits(
    modes: MapSets,
    probabilities: Tensor,
    *,
    draws: int,
    num_classes: int,
    spatial_dims: int = 2,
    include_background: bool = False,
    classes: Sequence[int] | None = None,
    empty: float = 1,
) -> GEDLimits:
    """Squared GED of a perfect model and of the best single mode, exactly, without drawing.

    With E the true mean distance of two independent annotations, and e that of an annotation from
    itself (0 but for ``empty=0``), the biased GED of `draws` samples of the truth is (E - e) /
    draws in the mean; the unbiased GED is 0. The best single mode m has the least
    2 E d(m, y) - d(m, m) - E, at any number of samples.

    Args:
        modes: every label map that the truth can give, ``(M, *spatial)``, ``(N, M, *spatial)`` or
            a list.
        probabilities: ``(M,)``, of the modes of each image.
        draws: samples for each image that the model is judged by.
        num_classes, spatial_dims, include_background, classes, empty: as in
            `generalized_energy_distance`.

    Raises:
        ValueError: arguments do not fit, or with ``empty=nan`` only some pairs of an image's modes
            have any of the classes; where none has, its limits are NaN.
    """
    scored = scored_classes(num_classes, include_background, classes)
    check_empty(empty)
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    cases, single = label_cases(modes, "modes", num_classes, spatial_dims)
    limits = [
        limits_of(
            iou_distances([case], scored, empty),
            checked_probabilities(probabilities, len(case)).to(case.device),
            draws,
        )
        for case in cases
    ]
    return GEDLimits(*(join_cases(list(limit), single) for limit in zip(*limits, strict=True)))


def limits_of(distance: Tensor, probabilities: Tensor, draws: int) -> GEDLimits:
    """The limits of one image whose modes have these distances from each other."""
    unknown = distance.isnan()
    if bool(unknown.any()) and not bool(unknown.all()):
        raise ValueError(
            "with empty=nan some modes of an image have none of the classes: their distance is "
            "not known; score at least one class that is in every mode, or set empty=1"
        )
    to_truth = distance @ probabilities
    itself, spread = distance.diagonal(), to_truth @ probabilities
    perfect = (spread - itself @ probabilities) / draws
    return GEDLimits(perfect, (2 * to_truth - itself).amin() - spread)


def checked_probabilities(probabilities: Tensor | None, modes: int) -> Tensor:
    """The probabilities in float64, if there is one for each mode."""
    given = torch.as_tensor([] if probabilities is None else probabilities).double()
    fits = given.shape == (modes,) and bool((given > 0).all())
    if not fits or abs(float(given.sum()) - 1) > 1e-6:
        raise ValueError(
            f"probabilities must be {modes} numbers above 0 that sum to 1, one for each mode, got "
            f"{given.tolist()}"
        )
    return given
