"""Against a known distribution: how often each mode is drawn, and whether classes flip as one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from revgrad.models.metrics.cases import (
    MapSets,
    check_empty,
    join_cases,
    label_cases,
    label_pairs,
    pair_cases,
    scored_classes,
)
from revgrad.models.metrics.overlap import iou_distance


def mode_frequencies(
    samples: MapSets,
    modes: MapSets,
    *,
    num_classes: int,
    spatial_dims: int = 2,
    include_background: bool = False,
    classes: Sequence[int] | None = None,
    empty: float = 1,
    probabilities: Tensor | None = None,
) -> Tensor:
    """Share of the samples whose nearest mode is each mode, nearest by d = 1 - IoU.

    Modes that look the same in an image (a class that would switch is not there) are all nearest;
    they share the sample, so that a perfect model has the true frequencies on average.

    Args:
        samples, num_classes, spatial_dims, include_background, classes, empty: as in
            `generalized_energy_distance`.
        modes: every label map that the true distribution can give for an image,
            ``(M, *spatial)``, ``(N, M, *spatial)`` or a list.
        probabilities: ``(M,)``, in proportion to which modes share a sample; equally by default.

    Returns:
        ``(N, M)``, or ``(M,)`` for one image, in float64; each row sums to 1.
    """
    scored = scored_classes(num_classes, include_background, classes)
    check_empty(empty)
    cases, single = label_pairs(
        samples, modes, num_classes, spatial_dims, names=("samples", "modes")
    )
    return join_cases(
        [
            nearest_shares(iou_distance(*case, scored, empty), probabilities).mean(0)
            for case in cases
        ],
        single,
    )


def switch_shares(
    samples: MapSets,
    scene: MapSets,
    switches: Sequence[tuple[int, int]],
    *,
    num_classes: int,
    spatial_dims: int = 2,
) -> Tensor:
    """How far each sample has flipped each class that switches.

    Of the pixels that have a class in the scene and that or its alternative in the sample, the
    share that has the alternative. A switch flips a whole image, so 0 and 1 are right, and what is
    between is a sample that mixes modes.

    Args:
        samples, num_classes, spatial_dims: as in `generalized_energy_distance`.
        scene: the label map before any switch, ``(*spatial)``, ``(N, *spatial)`` or a list.
        switches: pairs of a class and the label it switches to.

    Returns:
        ``(N, S, switches)`` in float64, without N for one image; NaN where no pixel counts.
    """
    named = [label for switch in switches for label in switch]
    if not named or not set(named) <= set(range(num_classes)):
        raise ValueError(
            f"switches must be pairs of labels from 0 to {num_classes - 1}, at least one, got "
            f"{list(switches)}"
        )
    cases, single = pair_cases(
        label_cases(samples, "samples", num_classes, spatial_dims),
        label_cases(scene, "scene", num_classes, spatial_dims, axes=()),
        ("samples", "scene"),
        spatial_dims,
    )
    return join_cases([_flipped(*case, switches) for case in cases], single)


def total_variation(frequencies: Tensor, probabilities: Tensor) -> Tensor:
    """Total variation distance of distributions over the last axis: half of `sum |f - p|`.

    A finite number of true samples is not at 0: compare with what the same number of draws from
    `probabilities` gives.
    """
    if frequencies.shape[-1] != probabilities.shape[-1]:
        raise ValueError(
            f"frequencies {tuple(frequencies.shape)} and probabilities "
            f"{tuple(probabilities.shape)} differ in the number of modes"
        )
    return (frequencies - probabilities).abs().sum(-1) / 2


def _flipped(samples: Tensor, scene: Tensor, switches: Sequence[tuple[int, int]]) -> Tensor:
    shares = []
    for label, alternative in switches:
        inside = samples[:, scene == label]
        flipped, kept = ((inside == value).sum(1).double() for value in (alternative, label))
        shares.append(flipped / (flipped + kept))
    return torch.stack(shares, dim=1)


def nearest_shares(distance: Tensor, probabilities: Tensor | None) -> Tensor:
    """The share of each sample that goes to each mode, ``(S, M)``."""
    # A pair without any of the classes is NaN under empty=nan: nothing tells the two apart.
    distance = distance.nan_to_num(nan=0.0)
    nearest = (distance == distance.amin(1, keepdim=True)).double()
    if probabilities is not None:
        if probabilities.shape != distance.shape[1:] or not bool((probabilities > 0).all()):
            raise ValueError(
                f"probabilities must be {distance.shape[1]} numbers above 0, one for each mode, "
                f"got {probabilities.tolist()}"
            )
        nearest = nearest * probabilities.to(nearest)
    return nearest / nearest.sum(1, keepdim=True)
