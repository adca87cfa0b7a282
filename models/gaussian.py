"""Diagonal Gaussians, the latent distributions of the variational networks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from revgrad.models.mixture import GaussianMixture

# A smaller scale makes the KL divergence of distant means overflow in float32 at bad starts.
SMALLEST_SCALE = 1e-5
# Spread of a head's outputs at the start, if its inputs have spread 1.
START_OF_HEAD = 0.1
# The squared ratio of the largest to the smallest scale, exp(40), is far inside float32.
LARGEST_LOG_SCALE = 10.0


class DiagonalGaussian(NamedTuple):
    """Independent normal distributions, one for each element.

    Attributes:
        mean: ``(N, channels, *spatial)``, or ``(N, channels)`` for a latent vector.
        scale: standard deviations, positive, of the same shape.
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def from_unbounded(cls, mean: Tensor, unbounded: Tensor) -> DiagonalGaussian:
        """Take the softplus of any numbers for the scale, as PHiSeg does.

        Both are made float32 at least, whatever autocast computed them in.
        """
        dtype = torch.promote_types(mean.dtype, torch.float32)
        return cls(mean.to(dtype), F.softplus(unbounded.to(dtype)) + SMALLEST_SCALE)

    @classmethod
    def from_log_scale(cls, mean: Tensor, log_scale: Tensor) -> DiagonalGaussian:
        """Take the exponential of any numbers for the scale, as the Probabilistic U-Net does.

        They are clamped to +-LARGEST_LOG_SCALE: without, training may end in NaN. Both are made
        float32 at least.
        """
        dtype = torch.promote_types(mean.dtype, torch.float32)
        log_scale = log_scale.to(dtype).clamp(-LARGEST_LOG_SCALE, LARGEST_LOG_SCALE)
        return cls(mean.to(dtype), log_scale.exp())

    @classmethod
    def standard_like(cls, other: DiagonalGaussian) -> DiagonalGaussian:
        """The distribution N(0, 1) in the shape of another."""
        return cls(torch.zeros_like(other.mean), torch.ones_like(other.scale))

    def rsample(self) -> Tensor:
        """Draw once, with gradients through mean and scale (the reparametrisation trick)."""
        return self.mean + self.scale * torch.randn_like(self.mean)

    def kl_divergence(self, other: DiagonalGaussian | GaussianMixture) -> Tensor:
        """KL(self || other) of each image, ``(N,)``: summed over channels and space.

        Of a mixture, an upper bound of it: see `GaussianMixture.kl_from`.
        """
        return other.kl_from(self)

    def kl_from(self, other: DiagonalGaussian) -> Tensor:
        """KL(other || self) of each image, ``(N,)``."""
        return self.kl_of_elements(other).flatten(1).sum(1)

    def kl_of_elements(self, other: DiagonalGaussian) -> Tensor:
        """KL(other || self) of each element."""
        ratio = other.scale / self.scale
        distance = (other.mean - self.mean) / self.scale
        return 0.5 * (ratio.square() + distance.square() - 1) - ratio.log()


def before_softplus(scale: float) -> float:
    """The number that the softplus makes a scale of."""
    return scale + math.log(-math.expm1(-scale))


def refuse_wrong_start(scale: float | None) -> None:
    """Raise a ValueError unless it can be a standard deviation, or None."""
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(f"posterior_start must be a positive number or None, not {scale!r}")


def start_small_(head: nn.Module) -> None:
    """Let the last layer before a distribution start near zero, so that it starts near N(0, 1)."""
    for parameter in head.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=START_OF_HEAD / parameter.shape[1] ** 0.5)
        else:
            nn.init.zeros_(parameter)
