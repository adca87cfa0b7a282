"""The papers' figures of a network on annotated cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from revgrad.models.data import Case, CaseDataset
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
from revgrad.models.training.batches import draw_annotators, seed_noise, spread
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
    network.eval()
    weight = next(network.parameters())

    def predict(case: Case, index: int) -> Tensor:
        seed_noise(seed, Purpose.EVALUATION, index)
        with torch.inference_mode():
            logits = network.sample(case.image[None].to(weight.device, weight.dtype), n)
        return logits[0].float().softmax(1).cpu()

    return score(predict, dataset, spread(len(dataset), cases), seed)


def score(
    predict: Predict, dataset: CaseDataset, indices: Iterable[int], seed: int = 0
) -> list[CaseScores]:
    """Score what `predict(case, index)` says of each case."""
    found = []
    for index in indices:
        case = dataset[index]
        found.append(
            _score(case, predict(case, index), generator(seed, Purpose.EVALUATION, index, 1))
        )
    return found


def no_learning(dataset: CaseDataset, indices: Sequence[int], n: int) -> dict[str, Predict]:
    """The two predictions that need no learning, by name."""
    baselines = import_module("revgrad.models.no_learning")
    classes = len(dataset.classes)

    def thresholds(case: Case, index: int) -> Tensor:
        # Shuffled, as GED is also taken of the first few, which would be the lowest thresholds.
        order = torch.randperm(n, generator=generator(0, Purpose.EVALUATION, index, 2))
        return one_hot(baselines.threshold_samples(case.image, n)[order], classes)

    def majority(case: Case, index: int) -> Tensor:
        mask = baselines.majority_mask(case.annotators, case.weights)
        return one_hot(mask, classes).expand(n, *[-1] * mask.dim())  # n equal samples

    return {"thresholding": thresholds, "majority mask (knows the annotators)": majority}


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Probabilities ``(n, classes, *spatial)`` of sure label maps ``(n, *spatial)``."""
    return F.one_hot(labels.long(), classes).movedim(-1, 1).float()


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
    maps = probabilities.argmax(1)
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
