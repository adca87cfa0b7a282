"""Whether a pixel said to be right with 80 % is right in 80 % of cases: calibration error."""

import torch
from torch import Tensor

from revgrad.models.metrics.cases import (
    MapSets,
    join_cases,
    label_cases,
    pair_cases,
    probability_cases,
)


def expected_calibration_error(
    mean_probabilities: MapSets, annotators: MapSets, *, num_bins: int = 15, spatial_dims: int = 2
) -> Tensor:
    """Mean gap of confidence and accuracy over bins of confidence (Naeini et al. 2015).

    The confidence of a pixel is its highest class probability, its accuracy the share of annotators
    who chose that class; bins are equally wide, their gaps weighted by their pixels (Guo et al.
    2017). An image alone has few pixels in most bins: over a data set take the class
    `ExpectedCalibrationError`, which fills the bins from all images before it takes the gaps.

    Args:
        mean_probabilities: class probabilities averaged over the samples, ``(C, *spatial)``,
            ``(N, C, *spatial)`` or a list.
        annotators: label maps, ``(A, *spatial)``, ``(N, A, *spatial)`` or a list.
        num_bins: report it with the result, which grows with it.

    Returns:
        ``(N,)``, or a scalar for one image, in float64.
    """
    return calibration_gap(
        calibration_bins(
            mean_probabilities, annotators, num_bins=num_bins, spatial_dims=spatial_dims
        )
    )


def calibration_bins(
    mean_probabilities: MapSets, annotators: MapSets, *, num_bins: int = 15, spatial_dims: int = 2
) -> Tensor:
    """Sums over the pixels of each bin of confidence, ``(N, 3, num_bins)`` in float64.

    Number of pixels, sum of confidences, sum of accuracies: what a reliability diagram needs. Bin
    b holds confidences above b / num_bins up to (b + 1) / num_bins. The arguments are those of
    `expected_calibration_error`.
    """
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}")
    model, single = probability_cases(
        mean_probabilities, "mean_probabilities", ("C",), spatial_dims
    )
    truth = label_cases(annotators, "annotators", len(model[0]), spatial_dims)
    names = ("mean_probabilities", "annotators")
    cases, single = pair_cases((model, single), truth, names, spatial_dims)
    return join_cases([_bins(*case, num_bins) for case in cases], single)


def calibration_gap(bins: Tensor) -> Tensor:
    """Expected calibration error of bin sums ``(..., 3, num_bins)``."""
    pixels, confidence, accuracy = bins.unbind(-2)
    return (confidence - accuracy).abs().sum(-1) / pixels.sum(-1)


def _bins(mean: Tensor, annotators: Tensor, num_bins: int) -> Tensor:
    confidence, label = mean.double().max(0)
    accuracy = (annotators == label).double().mean(0)
    values = torch.stack([torch.ones_like(confidence), confidence, accuracy])
    place = ((confidence * num_bins).ceil() - 1).clamp(0, num_bins - 1)
    # By masks, not by bincount: with weights that is not deterministic on CUDA.
    return torch.stack([(values * (place == b)).flatten(1).sum(1) for b in range(num_bins)], dim=-1)
