"""The evidence lower bound of hierarchical variational networks, as a loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from revgrad.models.gaussian import DiagonalGaussian
from revgrad.models.mixture import Distribution, fitted_kl
from revgrad.models.segmenter import LossTerms

_POOL = {2: F.avg_pool2d, 3: F.avg_pool3d}


def accumulated(logits: Sequence[Tensor]) -> list[Tensor]:
    """Sum the logits of each level with those of all deeper ones, in the level's own size.

    Args:
        logits: of each level, ``(N, classes, *spatial)``, the finest first, each half the size of
            the one before. Deeper ones are upsampled by their nearest neighbour.
    """
    *finer, total = logits
    totals = [total]
    for level in reversed(finer):
        total = level + F.interpolate(total, scale_factor=2.0, mode="nearest")
        totals.insert(0, total)
    return totals


def residual_cross_entropy(
    logits: Sequence[Tensor], masks: Tensor, class_weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy of each level's accumulated logits at full size.

    Of level l it is CE(sum of logits_k over k >= l, masks), summed over pixels, mean over the
    batch (PHiSeg, Baumgartner et al. 2019, the reconstruction term). Logits upsampled by their
    nearest neighbour are the same all over a block of pixels, so the labels of the block are
    counted instead, and no level but the finest has logits of full size.

    Args:
        logits: as `accumulated` takes them, the first of the masks' size.
        masks: ``(N, *spatial)``, integer labels.
        class_weights: ``(classes,)``, how much a pixel of each counts; None: 1.

    Returns:
        ``(levels,)``, the finest first.
    """
    dims = masks.dim() - 1
    # At least float32, whatever autocast made of the logits.
    dtype = torch.promote_types(logits[0].dtype, torch.float32)
    counts = F.one_hot(masks.long(), logits[0].shape[1]).movedim(-1, 1).to(dtype)
    if class_weights is not None:
        counts = counts * class_weights.to(counts).view(-1, *[1] * dims)
    found: list[Tensor] = []
    for total in accumulated([level.to(dtype) for level in logits]):
        if found:
            counts = _POOL[dims](counts, 2) * 2**dims
        found.append(-(counts * total.log_softmax(1)).sum() / len(masks))
    return torch.stack(found)


class ResidualCrossEntropy(nn.Module):
    """`residual_cross_entropy` as a module, which can be run again instead of stored."""

    class_weights: Tensor | None

    def __init__(self, class_weights: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, *logits: Tensor, masks: Tensor) -> Tensor:
        """The cross-entropy of each level."""
        return residual_cross_entropy(logits, masks, self.class_weights)


def elbo(
    reconstruction: Tensor,
    posterior: Sequence[DiagonalGaussian],
    prior: Sequence[Distribution],
    kl_weights: Sequence[float],
) -> LossTerms:
    """The negative evidence lower bound (RevPHiSeg, Gantenbein et al. 2020, eq. 3).

    Args:
        reconstruction: ``(levels,)``, the cross-entropies, each with weight 1.
        posterior: of each latent level, the finest first.
        prior: the same, given the deeper latents that the posterior drew.
        kl_weights: of each latent level.
    """
    pairs = zip(posterior, prior, strict=True)
    kl = torch.stack([fitted_kl(q, p).mean() for q, p in pairs])
    weights = kl.new_tensor(kl_weights)
    total = reconstruction.sum() + (weights * kl).sum()
    return LossTerms(total, reconstruction.detach(), kl.detach())
