"""Training losses for segmentation."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy_per_image(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None = None
) -> Tensor:
    """The cross-entropy of each image, summed over its pixels: a negative log-likelihood, in nats.

    Args:
        logits: ``(N, classes, *spatial)``.
        labels: ``(N, *spatial)``, integers below ``classes``.
        class_weights: ``(classes,)``, how much a pixel of each counts; None: 1.

    Returns:
        ``(N,)``, float32 at least, whatever autocast computed the logits in.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # A reduction inside the kernel would not be deterministic on CUDA.
    each = F.cross_entropy(logits, labels.long(), class_weights, reduction="none")
    return each.flatten(1).sum(1)


def checked_class_weights(weights: Sequence[float] | None, classes: int) -> Tensor | None:
    """The weights as a tensor, None for none.

    Raises:
        ValueError: They are not one positive number for each class.
    """
    if weights is None:
        return None
    if len(weights) != classes or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(
            f"class_weights must be {classes} positive numbers, one for each class, not {weights!r}"
        )
    return torch.tensor(weights, dtype=torch.float32)


def dice_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    include_background: bool = True,
    batch: bool = False,
    smooth: float = 1e-5,
) -> Tensor:
    """Cross-entropy plus soft Dice loss of one softmax over the classes.

    Args:
        logits: ``(N, classes, *spatial)``.
        labels: ``(N, *spatial)``, integers below ``classes``.
        include_background: let class 0 count in the Dice term (it always does in cross-entropy).
        batch: take one Dice coefficient over all images of the batch, not one for each image.
            Steadier where many images lack a class.
        smooth: added to both sides of the Dice fraction, so that a class that is neither
            predicted nor there counts as right.

    Returns:
        A scalar: the mean cross-entropy of a pixel plus one minus the mean Dice coefficient.
    """
    log_probabilities = logits.log_softmax(1)
    # As a product, not as a gather: the gather's backward is not deterministic on CUDA.
    truth = F.one_hot(labels, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
    cross_entropy = -(truth * log_probabilities).sum(1).mean()
    first = 0 if include_background else 1
    dice = _soft_dice(log_probabilities.exp()[:, first:], truth[:, first:], batch, smooth)
    return cross_entropy + 1 - dice.mean()


def _soft_dice(probabilities: Tensor, truth: Tensor, batch: bool, smooth: float) -> Tensor:
    """Dice coefficients ``(N, classes)``, or ``(classes,)`` over the whole batch."""
    pixels = [axis for axis in range(truth.ndim) if axis != 1 and (batch or axis != 0)]
    both = (probabilities * truth).sum(pixels)
    either = probabilities.sum(pixels) + truth.sum(pixels)
    return (2 * both + smooth) / (either + smooth)
