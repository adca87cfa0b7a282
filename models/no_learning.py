"""What is reached without learning anything: the scores that a model must beat.

A synthetic image may give its masks away, and agreement between annotators may be high: these
figures tell.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from revgrad.models.data.case import Case, CaseDataset, draw_annotators
from revgrad.models.metrics import generalized_energy_distance


def threshold_samples(image: Tensor, levels: int = 16, *, at_centre: bool = False) -> Tensor:
    """Label what is brighter than each of several thresholds 1, the rest 0.

    Args:
        image: ``(channels, *spatial)``; the first channel counts.
        levels: how many thresholds, evenly spaced between the darkest and the brightest pixel.
        at_centre: only what is connected with the image's centre, over corners too. Of images that
            are cut around a structure, thresholds then need not answer for all else that is as
            bright. In 2D and 3D.

    Returns:
        ``(levels, *spatial)`` uint8, one sample for each threshold, the lowest first.
    """
    if levels < 1:
        raise ValueError(f"levels must be at least 1, not {levels}")
    channel = image[0]
    fractions = torch.arange(1, levels + 1, dtype=channel.dtype, device=image.device) / (levels + 1)
    thresholds = torch.lerp(channel.min(), channel.max(), fractions)
    if at_centre:
        channel = _connected_level(channel)
    return (channel > thresholds.reshape(-1, *[1] * channel.dim())).to(torch.uint8)


def _connected_level(image: Tensor) -> Tensor:
    """Below which threshold each pixel is connected with the centre, for all thresholds at once.

    That is the darkest pixel of the brightest way there. On even axes the two middle pixels are the
    centre.
    """
    dilate = {2: F.max_pool2d, 3: F.max_pool3d}[image.dim()]
    centre = tuple(slice((size - 1) // 2, size // 2 + 1) for size in image.shape)
    level = torch.full_like(image, float("-inf"))
    level[centre] = image[centre]
    while True:
        wider = dilate(level[None, None], 3, stride=1, padding=1)[0, 0].minimum(image)
        if torch.equal(wider, level):
            return level
        level = wider


def majority_mask(annotators: Tensor, weights: Tensor | None = None) -> Tensor:
    """Give each pixel the label that most annotators gave it.

    Args:
        annotators: ``(annotators, *spatial)``, integer labels.
        weights: ``(annotators,)``, as `Case.weights`: votes count as much.

    Returns:
        ``(1, *spatial)`` of the annotators' type; among equally many votes the highest label:
        what half of the annotators call a lesion is one.
    """
    votes = torch.ones(len(annotators)) if weights is None else weights
    votes = votes.to(annotators.device, torch.float64).reshape(-1, *[1] * (annotators.dim() - 1))
    labels = annotators.unique().flip(0)
    # One label at a time: a one-hot tensor of all would be many times the masks.
    counts = torch.stack([(votes * (annotators == label)).sum(0) for label in labels])
    return labels[counts.argmax(0)][None]


def resampled_annotators(case: Case, n: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw annotators of a case with replacement, by their weights if they have any.

    This knows the answer: it is what a perfect model of the case's distribution would score.

    Returns:
        ``(n, *spatial)`` of the annotators' type.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    return draw_annotators(case, n, generator)


def no_learning_scores(dataset: CaseDataset, n: int = 16, *, seed: int = 0) -> dict[str, float]:
    """Mean squared generalized energy distance of each baseline over a dataset.

    Args:
        dataset: cases, at least one.
        n: samples, and thresholds.
        seed: of the drawn annotators.

    Returns:
        ``"thresholding"`` and ``"thresholding, part at the centre"`` (of two classes only),
        ``"majority mask"``, which is one sample, and ``"resampled annotators"``. Zero is best.
    """
    if not len(dataset):
        raise ValueError("the dataset has no cases to score")
    generator = torch.Generator().manual_seed(seed)
    totals: dict[str, float] = {}
    for index in range(len(dataset)):
        case = dataset[index]
        samples = {
            "majority mask": majority_mask(case.annotators, case.weights),
            "resampled annotators": resampled_annotators(case, n, generator),
        }
        if len(dataset.classes) == 2:
            thresholds = {
                "thresholding": threshold_samples(case.image, n),
                "thresholding, part at the centre": threshold_samples(
                    case.image, n, at_centre=True
                ),
            }
            samples = {**thresholds, **samples}
        for name, maps in samples.items():
            distance = generalized_energy_distance(
                maps,
                case.annotators,
                num_classes=len(dataset.classes),
                spatial_dims=dataset.spatial_dims,
                annotator_weights=case.weights,
            )
            totals[name] = totals.get(name, 0.0) + float(distance)
    return {name: total / len(dataset) for name, total in totals.items()}
