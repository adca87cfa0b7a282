"""Draw samples of every case once, and find out all that `revgrad evaluate` tells of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from revgrad.models.data import CaseDataset
from revgrad.models.data.case import without_ignored
from revgrad.models.metrics import KnownTruthReport, known_truth_report
from revgrad.models.training.scores import CaseScores, Predict, scored


class Judged(NamedTuple):
    """What samples are like.

    Attributes:
        scores: of each case.
        truth: against the known truth, if the data have one.
        shown: ``(n, classes, *spatial)``, probabilities of the cases that a sheet shows.
    """

    scores: list[CaseScores]
    truth: KnownTruthReport | None
    shown: list[Tensor]


def has_known_truth(dataset: CaseDataset) -> bool:
    """Whether all annotations that can be are known, with what switches in them."""
    case = dataset[0]
    return case.weights is not None and {"scene", "switches"} <= set(case.facts)


def judge(
    predict: Predict,
    dataset: CaseDataset,
    indices: Sequence[int],
    seed: int,
    shown: Sequence[int] = (),
) -> Judged:
    """Score what `predict(case, index)` says of each case.

    Args:
        predict: gives probabilities of samples.
        dataset: the cases.
        indices: which of them.
        seed: of drawn annotators.
        shown: of which of these the probabilities are kept.
    """
    found: list[CaseScores] = []
    kept: list[Tensor] = []

    def label_maps() -> Iterator[Tensor]:
        together = zip(indices, scored(predict, dataset, indices, seed), strict=True)
        for index, (case, scores, probabilities) in together:
            found.append(scores)
            if index in shown:
                kept.append(probabilities)
            yield without_ignored(case, probabilities.argmax(1))

    if has_known_truth(dataset):
        cases = (dataset[index] for index in indices)
        truth = known_truth_report(label_maps(), cases, num_classes=len(dataset.classes))
        return Judged(found, truth, kept)
    for _ in label_maps():
        pass
    return Judged(found, None, kept)
