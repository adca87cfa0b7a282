"""What stands beside every model: predictions that learn nothing."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from revgrad.models.data import Case, CaseDataset
from revgrad.models.no_learning import (
    majority_mask,
    resampled_annotators,
    threshold_samples,
)
from revgrad.models.training.scores import Predict
from revgrad.models.training.seeding import Purpose, generator

THRESHOLDING = "thresholding"
AT_CENTRE = "thresholding, part at the centre"
MAJORITY = "majority mask (knows the annotators)"
RESAMPLED = "resampled annotators (knows them)"


def references(dataset: CaseDataset, n: int, seed: int) -> dict[str, Predict]:
    """Predictions without learning, by name; thresholding only of two classes."""
    classes = len(dataset.classes)

    def thresholds(case: Case, index: int, at_centre: bool = False) -> Tensor:
        # In any order: the first few samples are judged by themselves, too.
        order = torch.randperm(n, generator=generator(seed, Purpose.EVALUATION, index, 3))
        return one_hot(threshold_samples(case.image, n, at_centre=at_centre)[order], classes)

    def majority(case: Case, index: int) -> Tensor:
        mask = majority_mask(case.annotators, case.weights)
        return one_hot(mask, classes).expand(n, *[-1] * mask.dim())  # n equal samples

    def resampled(case: Case, index: int) -> Tensor:
        draw = generator(seed, Purpose.EVALUATION, index, 2)
        return one_hot(resampled_annotators(case, n, draw), classes)

    found: dict[str, Predict] = {
        THRESHOLDING: thresholds,
        AT_CENTRE: partial(thresholds, at_centre=True),
    }
    return (found if classes == 2 else {}) | {MAJORITY: majority, RESAMPLED: resampled}


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Probabilities ``(n, classes, *spatial)`` of sure label maps ``(n, *spatial)``."""
    return F.one_hot(labels.long(), classes).movedim(-1, 1).float()
