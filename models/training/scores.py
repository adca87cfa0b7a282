"""The papers' figures of a network on annotated cases."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from revgrad.models.data import Case, CaseDataset
from revgrad.models.data.case import draw_annotators, without_ignored
from revgrad.models.metrics import (
    calibration_bins,
    calibration_gap,
    diversity,
    generalized_energy_distance,
    hungarian_matched_iou,
    mean_prediction_dice,
    normalized_cross_correlation,
    sample_dice,
    volume_crps,
)
from revgrad.models.segmenter import Segmenter
from revgrad.models.training.batches import seed_noise, spread
from revgrad.models.training.intervals import Interval, Resampling, interval
from revgrad.models.training.seeding import Purpose, generator

COUNTS = (1, 4, 8, 16)
ECE = "ECE"
# Probabilities of every sample of a case, (n, classes, *spatial).
Predict = Callable[[Case, int], Tensor]


class CaseScores(NamedTuple):
    """What one case scored.

    Attributes:
        name, patient: of the case.
        values: by the metric's name.
        bins: sums for the calibration error, ``(3, bins)``.
    """

    name: str
    patient: str
    values: dict[str, float]
    bins: Tensor


_GED = re.compile(r"GED² \(n=(\d+)\)")


def ged_name(n: int) -> str:
    """What the GED of n samples is called in tables."""
    return f"GED² (n={n})"


def score_network(
    network: Segmenter, dataset: CaseDataset, *, n: int = 16, cases: int = 0, seed: int = 0
) -> list[CaseScores]:
    """Draw n samples of each case and score them.

    Args:
        network: in any mode and on any device; put into eval mode.
        dataset: the cases.
        n: samples of each; GED is also taken of the first 1, 4, 8, 16 of them.
        cases: how many cases, evenly spaced; 0 for all.
        seed: of samples and drawn annotators; a case's draws do not depend on the other cases.
    """
    predict = predictor(network, n, seed)
    return [found for _, found, _ in scored(predict, dataset, spread(len(dataset), cases), seed)]


def predictor(network: Segmenter, n: int, seed: int) -> Predict:
    """Draws n samples of a case, or as many as the network can give."""
    network.eval()
    weight = next(network.parameters())
    count = min(n, network.most_samples or n)

    def predict(case: Case, index: int) -> Tensor:
        seed_noise(seed, Purpose.EVALUATION, index)
        with torch.inference_mode():
            logits = network.sample(case.image[None].to(weight.device, weight.dtype), count)
        return logits[0].float().softmax(1).cpu()

    return predict


def scored(
    predict: Predict, dataset: CaseDataset, indices: Iterable[int], seed: int = 0
) -> Iterator[tuple[Case, CaseScores, Tensor]]:
    """Score what `predict(case, index)` says of each case, and hand on all three."""
    for index in indices:
        case = dataset[index]
        probabilities = predict(case, index)
        draw = generator(seed, Purpose.EVALUATION, index, 1)
        yield case, _score(case, probabilities, draw), probabilities


def summary(scores: Sequence[CaseScores], resampling: Resampling) -> dict[str, Interval]:
    """Every metric's mean over cases, with its interval over patients.

    The calibration error is of all pixels together, and so is it in each replicate.
    """
    found = {
        name: resampling.mean([case.values[name] for case in scores]) for name in scores[0].values
    }
    bins = resampling.sums(torch.stack([case.bins for case in scores]).numpy())
    found[ECE] = interval(calibration_gap(torch.from_numpy(bins)).numpy())
    return found


def ged_counts(names: Iterable[str]) -> list[int]:
    """The numbers of samples, ascending, that there is a GED of among these metrics."""
    return sorted(int(found[1]) for name in names if (found := _GED.fullmatch(name)))


def common_ged(first: Sequence[CaseScores], second: Sequence[CaseScores]) -> str:
    """The name of the GED of the most samples that both have."""
    counts = [set(ged_counts(scores[0].values)) for scores in (first, second)]
    return ged_name(max(counts[0] & counts[1]))


def paired_difference(
    first: Sequence[CaseScores], second: Sequence[CaseScores], metric: str, resampling: Resampling
) -> Interval:
    """The mean of first minus second over cases, with its interval over patients.

    Raises:
        ValueError: They are not of the same cases.
    """
    if [case.name for case in first] != [case.name for case in second]:
        raise ValueError("a paired difference needs the same cases, in the same order")
    pairs = zip(first, second, strict=True)
    return resampling.mean([a.values[metric] - b.values[metric] for a, b in pairs])


def _score(case: Case, probabilities: Tensor, draw: torch.Generator) -> CaseScores:
    n, classes = probabilities.shape[:2]
    maps = without_ignored(case, probabilities.argmax(1))
    # Metrics other than the energy distance take annotators as draws, so of a known distribution
    # they get draws.
    truth = case.annotators if case.weights is None else draw_annotators(case, max(n, 16), draw)
    mean = probabilities.mean(0)
    axes: dict[str, Any] = {"spatial_dims": maps.dim() - 1}
    both: dict[str, Any] = {"num_classes": classes, **axes}
    values = {
        ged_name(count): generalized_energy_distance(
            maps[:count], case.annotators, annotator_weights=case.weights, **both
        )
        for count in sorted({*COUNTS, n})
        if count <= n
    }
    values |= {
        "NCC": normalized_cross_correlation(probabilities, truth, **axes),
        "Dice": sample_dice(maps, truth, generator=draw, **both),
        "Dice of the mean": mean_prediction_dice(mean, truth, generator=draw, **axes),
        "diversity": diversity(maps, **both),
        "CRPS of volume": volume_crps(maps, truth, voxel_volume=_voxel_volume(case), **both),
        "Hungarian IoU": hungarian_matched_iou(maps, truth, **both),
    }
    numbers = {name: float(value) for name, value in values.items()}
    return CaseScores(case.name, case.patient, numbers, calibration_bins(mean, truth, **axes))


def _voxel_volume(case: Case) -> float:
    """In the unit of `spacing`, or 1 where it is not known."""
    spacing = case.facts.get("spacing", 1.0)
    return float(math.prod(np.atleast_1d(spacing).tolist()))
