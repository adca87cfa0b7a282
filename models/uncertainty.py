"""Where a model is unsure: maps of the uncertainty that its samples of an image show."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from revgrad.models.metrics.cases import probability_cases


class UncertaintyMaps(NamedTuple):
    """What the samples of each image say pixel by pixel. Entropies are in nats, at most log C.

    Attributes:
        mean: ``(N, C, *spatial)``, class probabilities averaged over the samples.
        predictive_entropy: ``(N, *spatial)``, entropy of that mean: all of the uncertainty.
        expected_entropy: ``(N, *spatial)``, mean over the samples of a sample's own entropy: what
            each sample leaves open (aleatoric).
        mutual_information: ``(N, *spatial)``, the difference of the two, not below 0: how much the
            samples contradict each other (Houlsby et al. 2011; Smith and Gal 2018, eq. 4).
        variance: ``(N, *spatial)``, variance over the samples of a class's probability, divided by
            their number, summed over classes. It does not depend on the order of the labels.
        cross_entropy: ``(N, *spatial)``, mean over the samples of -sum_c mean_c log(s_c + eps), the
            map that NCC compares with the annotators' (Baumgartner et al. 2019).
    """

    mean: Tensor
    predictive_entropy: Tensor
    expected_entropy: Tensor
    mutual_information: Tensor
    variance: Tensor
    cross_entropy: Tensor


def uncertainty_maps(probabilities: Tensor, *, eps: float = 1e-8) -> UncertaintyMaps:
    """Maps of the uncertainty of samples.

    Args:
        probabilities: of each sample, ``(N, n, C, *spatial)``: ``net.sample(image, n).softmax(2)``.
            Half precision is computed in float32.
        eps: keeps the logarithm of `cross_entropy` finite, as in `normalized_cross_correlation`.
            Entropies take 0 log 0 for 0 and need none.

    Raises:
        TypeError: the samples are no floats.
        ValueError: a shape without samples, classes or space, or values that are no probabilities.
    """
    if probabilities.ndim < 4:
        raise ValueError(
            f"probabilities must be (N, n, C, *spatial), got {tuple(probabilities.shape)}"
        )
    probability_cases(probabilities, "probabilities", ("n", "C"), probabilities.ndim - 3)
    samples = probabilities.to(torch.promote_types(probabilities.dtype, torch.float32))
    mean = samples.mean(1)
    total = torch.special.entr(mean).sum(1)
    within = torch.special.entr(samples).sum(2).mean(1)
    return UncertaintyMaps(
        mean=mean,
        predictive_entropy=total,
        expected_entropy=within,
        mutual_information=(total - within).clamp_min(0),
        variance=samples.var(1, correction=0).sum(1),
        cross_entropy=-(mean * (samples + eps).log().mean(1)).sum(1),
    )
