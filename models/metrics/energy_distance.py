"""How far the distribution of samples is from that of annotators: generalized energy distance."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from revgrad.models.metrics.cases import (
    MapSets,
    check_empty,
    join_cases,
    label_cases,
    label_pairs,
    scored_classes,
)
from revgrad.models.metrics.overlap import iou_distances


class EnergyTerms(NamedTuple):
    """The three mean distances of the generalized energy distance, ``(N,)`` each, or scalars.

    Attributes:
        between: E d(s, y), of a sample from an annotator.
        samples: E d(s, s'), the diversity of the samples.
        annotators: E d(y, y'), the diversity of the annotators.
    """

    between: Tensor
    samples: Tensor
    annotators: Tensor

    @property
    def squared_distance(self) -> Tensor:
        """2 E d(s, y) - E d(s, s') - E d(y, y')."""
        return 2 * self.between - self.samples - self.annotators


def generalized_energy_distance(
    samples: MapSets,
    annotators: MapSets,
    *,
    num_classes: int,
    spatial_dims: int = 2,
    include_background: bool = False,
    classes: Sequence[int] | None = None,
    unbiased: bool = False,
    empty: float = 1,
    annotator_weights: MapSets | None = None,
) -> Tensor:
    """Squared generalized energy distance of samples and annotators, in float64.

    2 E d(s, y) - E d(s, s') - E d(y, y') with d = 1 - IoU, averaged over classes (Székely and
    Rizzo 2013; for segmentation Kohl et al. 2018). Tables in the literature print this square and
    call it GED. Zero is best. Report the number of samples with it: the biased estimate falls with
    that number for the same model.

    Args:
        samples: label maps, integers: ``(S, *spatial)`` of one image, ``(N, S, *spatial)``, or a
            list of N of the former.
        annotators: ``(A, *spatial)``, ``(N, A, *spatial)`` or a list, whose items may have
            different numbers of annotators.
        num_classes: the labels are 0 to `num_classes` - 1.
        spatial_dims: 2 or 3, axes of an image: what tells one image from a batch.
        include_background: let class 0 count in d.
        classes: the labels that count in d, instead of all but the background.
        unbiased: leave each map's distance from itself out of the two inner means (U-statistic).
            The result does not depend on the number of samples in the mean, and can be negative.
        empty: the IoU of a class that neither map has: 1, 0, or nan to leave it out of the pair's
            average (and a pair that has none of the classes out of the mean of pairs).
        annotator_weights: ``(A,)``, ``(N, A)`` or a list: the annotators are the whole of a known
            distribution with these probabilities (rescaled to sum 1), not draws from it. Their own
            mean is then exact, and is the same with `unbiased`.

    Returns:
        ``(N,)``, or a scalar for one image.

    Raises:
        TypeError: the maps are no integers.
        ValueError: shapes, labels, weights or arguments do not fit.
    """
    return energy_terms(
        samples,
        annotators,
        num_classes=num_classes,
        spatial_dims=spatial_dims,
        include_background=include_background,
        classes=classes,
        unbiased=unbiased,
        empty=empty,
        annotator_weights=annotator_weights,
    ).squared_distance


def energy_terms(
    samples: MapSets,
    annotators: MapSets,
    *,
    num_classes: int,
    spatial_dims: int = 2,
    include_background: bool = False,
    classes: Sequence[int] | None = None,
    unbiased: bool = False,
    empty: float = 1,
    annotator_weights: MapSets | None = None,
) -> EnergyTerms:
    """Return the parts of `generalized_energy_distance`, whose arguments these are."""
    scored = scored_classes(num_classes, include_background, classes)
    check_empty(empty)
    cases, single = label_pairs(samples, annotators, num_classes, spatial_dims)
    weights = _weights_by_case(annotator_weights, [case[1] for case in cases], single)
    terms = []
    for (drawn, truth), weight in zip(cases, weights, strict=True):
        even = torch.ones(len(drawn), dtype=torch.float64, device=drawn.device)
        n, distance = len(drawn), iou_distances([drawn, truth], scored, empty)
        apart = _apart("samples", n, unbiased)
        # Annotators with weights are the distribution itself: equal pairs belong to its mean.
        also = annotator_weights is None and _apart("annotators", len(truth), unbiased)
        between = mean_of_pairs(distance[:n, n:], even, weight)
        within = mean_of_pairs(distance[:n, :n], even, even, apart)
        among = mean_of_pairs(distance[n:, n:], weight, weight, also)
        terms.append((between, within, among))
    return EnergyTerms(*(join_cases(list(term), single) for term in zip(*terms, strict=True)))


def diversity(
    maps: MapSets,
    *,
    num_classes: int,
    spatial_dims: int = 2,
    include_background: bool = False,
    classes: Sequence[int] | None = None,
    unbiased: bool = False,
    empty: float = 1,
) -> Tensor:
    """Mean distance E d(s, s') of the samples of an image, or of its annotators, in float64.

    Args:
        maps: label maps, integers: ``(S, *spatial)`` of one image, ``(N, S, *spatial)``, or a list
            of N of the former. The other arguments are those of `generalized_energy_distance`.

    Returns:
        ``(N,)``, or a scalar for one image. The published tables hold the biased estimate, in
        which a map's distance from itself counts.
    """
    scored = scored_classes(num_classes, include_background, classes)
    check_empty(empty)
    cases, single = label_cases(maps, "maps", num_classes, spatial_dims)
    means = []
    for case in cases:
        even = torch.ones(len(case), dtype=torch.float64, device=case.device)
        distance = iou_distances([case], scored, empty)
        means.append(mean_of_pairs(distance, even, even, _apart("maps", len(case), unbiased)))
    return join_cases(means, single)


def mean_of_pairs(distance: Tensor, rows: Tensor, columns: Tensor, apart: bool = False) -> Tensor:
    """Weighted mean of the pairs that have a distance; `apart` leaves out the diagonal."""
    weight = rows[:, None] * columns
    if apart:
        weight.fill_diagonal_(0)
    known = ~distance.isnan()
    return (weight * distance.nan_to_num()).sum() / (weight * known).sum()


def _apart(name: str, count: int, unbiased: bool) -> bool:
    if unbiased and count < 2:
        raise ValueError(
            f"unbiased=True compares different {name} of a case and needs at least two, got one"
        )
    return unbiased


def _weights_by_case(
    weights: MapSets | None, annotators: list[Tensor], single: bool
) -> list[Tensor]:
    """One float64 weight for each annotator of each case."""
    if weights is None:
        return [torch.ones(len(a), dtype=torch.float64, device=a.device) for a in annotators]
    shared = isinstance(weights, Tensor) and weights.ndim == 1
    by_case = [weights] * len(annotators) if shared else list(weights)
    if len(by_case) != len(annotators) or (single and not shared):
        raise ValueError(
            f"annotator_weights must be (A,), or one (A,) for each of {len(annotators)} cases"
        )
    found = []
    for weight, maps in zip(by_case, annotators, strict=True):
        weight = torch.as_tensor(weight).to(maps.device, torch.float64)
        if weight.shape != maps.shape[:1] or not bool((weight >= 0).all()) or weight.sum() == 0:
            raise ValueError(
                "annotator_weights must be probabilities, one for each annotator: "
                f"{len(maps)} of them, at least 0 and not all 0; got {weight.tolist()}"
            )
        found.append(weight / weight.sum())
    return found
