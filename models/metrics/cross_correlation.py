"""Whether a model is uncertain where annotators disagree with it: PHiSeg's NCC."""

import torch
from torch import Tensor

from revgrad.models.metrics.cases import (
    MapSets,
    join_cases,
    label_cases,
    pair_cases,
    probability_cases,
)

# A map is constant when it varies by less than this share of its largest value.
CONSTANT = 1e-12


def normalized_cross_correlation(
    probabilities: MapSets,
    annotators: MapSets,
    *,
    spatial_dims: int = 2,
    eps: float = 1e-8,
    constant: float = float("nan"),
) -> Tensor:
    """Correlation over pixels of a model's uncertainty with its error, averaged over annotators.

    The uncertainty is the mean cross-entropy of a sample with the mean prediction, the error that
    with an annotator (Baumgartner et al. 2019); both are means over samples of
    -sum_c t_c log(s_c + eps), with t the mean softmax or the annotator's one-hot mask. One is best.

    Args:
        probabilities: softmax of every sample, ``(S, C, *spatial)`` of one image,
            ``(N, S, C, *spatial)``, or a list of N of the former.
        annotators: label maps, ``(A, *spatial)``, ``(N, A, *spatial)`` or a list.
        eps: keeps the logarithm finite. It bounds the maps: a sure error costs 18.4 at 1e-8.
        constant: the correlation with a map that has the same value everywhere, which is
            undefined. NaN is left out of the mean over annotators, unless there is no other.

    Returns:
        ``(N,)``, or a scalar for one image, in float64.
    """
    model, single = probability_cases(probabilities, "probabilities", ("S", "C"), spatial_dims)
    truth = label_cases(annotators, "annotators", model[0].shape[1], spatial_dims)
    cases, single = pair_cases(
        (model, single), truth, ("probabilities", "annotators"), spatial_dims
    )
    means = [_mean_correlation(*case, eps, constant) for case in cases]
    return join_cases(means, single)


def _mean_correlation(
    probabilities: Tensor, annotators: Tensor, eps: float, constant: float
) -> Tensor:
    # Both maps need the samples only through two means, so one float64 sample is held at a time.
    mean = torch.zeros(probabilities.shape[1:], dtype=torch.float64, device=probabilities.device)
    mean_log = mean.clone()
    for sample in probabilities:
        exact = sample.double()
        mean += exact / len(probabilities)
        mean_log += (exact + eps).log() / len(probabilities)
    uncertainty = -(mean * mean_log).sum(0)
    errors = -mean_log.take_along_dim(annotators.long(), 0)
    return _correlation(uncertainty.flatten(), errors.flatten(1), constant).nanmean()


def _correlation(one: Tensor, others: Tensor, constant: float) -> Tensor:
    """Pearson correlation of ``(P,)`` with each row of ``(A, P)``."""
    maps = torch.cat([one[None], others])
    low, high = maps.aminmax(dim=1)
    varies = high - low > CONSTANT * maps.abs().amax(1)
    centred = maps - maps.mean(1, keepdim=True)
    length = centred.square().sum(1).sqrt()
    product = (centred[1:] @ centred[0]) / (length[1:] * length[0])
    return torch.where(varies[1:] & varies[0], product, constant)
