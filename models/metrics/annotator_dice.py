"""Dice coefficient against annotators who disagree, in the two protocols of the literature."""

from collections.abc import Sequence

import torch
from torch import Tensor

from revgrad.models.metrics.cases import (
    MapSets,
    check_empty,
    join_cases,
    label_cases,
    label_pairs,
    probability_cases,
    scored_classes,
)
from revgrad.models.metrics.overlap import overlap


def sample_dice(
    samples: MapSets,
    annotators: MapSets,
    *,
    num_classes: int,
    spatial_dims: int = 2,
    include_background: bool = False,
    classes: Sequence[int] | None = None,
    empty: float = 1,
    draws: int | None = 1,
    generator: torch.Generator | None = None,
    per_class: bool = False,
) -> Tensor:
    """Dice of every sample against a drawn annotator, averaged over samples (PHiSeg's paper).

    Args:
        samples, annotators, num_classes, spatial_dims, include_background, classes: as in
            `generalized_energy_distance`.
        empty: the Dice of a class that neither map has: 1, 0, or nan to leave it out of averages.
        draws: how many annotators to draw for each image, with replacement. None takes all of
            them: what the mean over draws tends to, without chance.
        generator: where the draws come from; torch's global CPU generator by default.
        per_class: do not average over classes.

    Returns:
        float64 ``(N,)``, or ``(N, classes)``; without N for one image.
    """
    scored = scored_classes(num_classes, include_background, classes)
    check_empty(empty)
    cases, single = label_pairs(samples, annotators, num_classes, spatial_dims)
    found = []
    for maps, truth in cases:
        dice = overlap(maps, truth, scored).dice(empty)
        dice = dice[:, :, _draw(len(truth), draws, generator).to(dice.device)]
        # Classes first, as everywhere: with nan the order of the averages matters.
        found.append(dice.flatten(1).nanmean(1) if per_class else dice.nanmean(0).nanmean())
    return join_cases(found, single)


def mean_prediction_dice(
    mean_probabilities: MapSets,
    annotators: MapSets,
    *,
    spatial_dims: int = 2,
    threshold: float | None = None,
    include_background: bool = False,
    classes: Sequence[int] | None = None,
    empty: float = 1,
    draws: int | None = 1,
    generator: torch.Generator | None = None,
    per_class: bool = False,
) -> Tensor:
    """Dice of the thresholded mean prediction against a drawn annotator (PHiSeg's code).

    Args:
        mean_probabilities: class probabilities averaged over the samples, ``(C, *spatial)``,
            ``(N, C, *spatial)`` or a list. `label_frequencies` makes them of label maps.
        annotators: ``(A, *spatial)``, ``(N, A, *spatial)`` or a list.
        threshold: of two classes, label 1 where its probability is above this. By default the most
            probable class, the lowest of equals.

    The other arguments, and what is returned, are those of `sample_dice`.
    """
    means, single = probability_cases(
        mean_probabilities, "mean_probabilities", ("C",), spatial_dims
    )
    num_classes = len(means[0])
    maps = [_labels(mean, num_classes, threshold)[None] for mean in means]
    return sample_dice(
        maps[0] if single else maps,
        annotators,
        num_classes=num_classes,
        spatial_dims=spatial_dims,
        include_background=include_background,
        classes=classes,
        empty=empty,
        draws=draws,
        generator=generator,
        per_class=per_class,
    )


def label_frequencies(samples: MapSets, *, num_classes: int, spatial_dims: int = 2) -> Tensor:
    """Return how often the samples give a pixel each label, ``(N, C, *spatial)`` in float32.

    Samples are as in `generalized_energy_distance`, but all images must have the same size.
    """
    cases, single = label_cases(samples, "samples", num_classes, spatial_dims)
    shares = [
        torch.stack([(case == label).sum(0) / len(case) for label in range(num_classes)])
        for case in cases
    ]
    return join_cases(shares, single)


def _draw(annotators: int, draws: int | None, generator: torch.Generator | None) -> Tensor:
    """Which annotators to compare with."""
    if draws is None:
        return torch.arange(annotators)
    if draws < 1:
        raise ValueError(f"draws must be at least 1, or None for all annotators, got {draws}")
    device = "cpu" if generator is None else generator.device
    return torch.randint(annotators, (draws,), generator=generator, device=device)


def _labels(mean: Tensor, num_classes: int, threshold: float | None) -> Tensor:
    if len(mean) != num_classes:
        raise ValueError(f"cases differ in the number of classes: {num_classes} and {len(mean)}")
    if threshold is None:
        return mean.argmax(0)
    if num_classes != 2:
        raise ValueError(f"a threshold needs two classes, got {num_classes}")
    return (mean[1] > threshold).long()
