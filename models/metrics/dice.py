"""Overlap of two label maps."""

import torch
from torch import Tensor


def dice_per_class(prediction: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Dice coefficient of every class over all elements of two label maps.

    Args:
        prediction: integer labels below ``classes``, any shape.
        labels: the same shape.

    Returns:
        ``(classes,)`` float64; NaN for a class that is in neither map.
    """
    if prediction.shape != labels.shape:
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and labels {tuple(labels.shape)} differ in shape"
        )
    pairs = (labels.flatten() * classes + prediction.flatten()).bincount(minlength=classes**2)
    confusion = pairs.view(classes, classes).to(torch.float64)
    return 2 * confusion.diagonal() / (confusion.sum(0) + confusion.sum(1))
