"""Mixtures of Gaussians, a prior for what an image leaves open between a few alternatives."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from revgrad.models.gaussian import DiagonalGaussian

# Spread of the components' means at the start, or all would learn the same.
SPREAD_AT_START = 1.0


class GaussianMixture(NamedTuple):
    """A mixture of diagonal Gaussians: one component for all elements of an image at once.

    Where a structure is there or is not, posteriors fall into clumps. A Gaussian prior fitted to
    them also covers the empty space between, and how often samples have the structure is where the
    decoder happens to draw the line. A mixture has a weight for each clump, which is how often
    (as prior of the Probabilistic U-Net: Bhat et al. 2022, *Generalized Probabilistic U-Net for
    medical image segmentation*).

    Attributes:
        log_weights: ``(components, N)``, log probability of each component.
        components: ``(components, N, channels, *spatial)``.
    """

    log_weights: Tensor
    components: DiagonalGaussian

    @classmethod
    def from_channels(
        cls, components: DiagonalGaussian, logits: Tensor, count: int
    ) -> GaussianMixture:
        """Make it of maps that have the components' channels one after the other.

        Args:
            components: ``(N, count * channels, *spatial)``.
            logits: ``(N, count, *spatial)``, the weights before the softmax, averaged over space.
            count: number of components.
        """
        mean, scale = (part.unflatten(1, (count, -1)).movedim(1, 0) for part in components)
        weights = logits.to(mean.dtype).reshape(*logits.shape[:2], -1).mean(2)
        return cls(weights.T.log_softmax(0), DiagonalGaussian(mean, scale))

    @property
    def mean(self) -> Tensor:
        """Of each element, ``(N, channels, *spatial)``."""
        return (self._weights * self.components.mean).sum(0)

    @property
    def scale(self) -> Tensor:
        """Standard deviation of each element, ``(N, channels, *spatial)``."""
        mean, scale = self.components
        spread = scale.square() + (mean - self.mean).square()
        return (self._weights * spread).sum(0).sqrt()

    @property
    def _weights(self) -> Tensor:
        """Probabilities, with an axis for each of the components'."""
        axes = self.components.mean.dim() - 2
        return self.log_weights.exp()[(..., *[None] * axes)]

    def rsample(self) -> Tensor:
        """Draw once, with gradients through the drawn component's mean and scale.

        The weights get none: what component is drawn is no smooth function of them.
        """
        # The largest of logits with Gumbel noise is a draw by their softmax.
        noise = -torch.empty_like(self.log_weights).exponential_().log()
        drawn = (self.log_weights + noise).argmax(0)
        images = torch.arange(len(drawn), device=drawn.device)
        return DiagonalGaussian(*(part[drawn, images] for part in self.components)).rsample()

    def kl_from(self, other: DiagonalGaussian) -> Tensor:
        """An upper bound of KL(other || self) of each image, ``(N,)``; exact for one component.

        -log sum_k w_k exp(-KL(other || component k)), the variational bound of Hershey and Olsen
        (2007, *Approximating the Kullback Leibler divergence between Gaussian mixture models*) for
        one Gaussian on the left. Larger than the divergence, it keeps the evidence lower bound one.
        """
        each = self.components.kl_of_elements(other).flatten(2).sum(2)
        return -(self.log_weights - each).logsumexp(0)

    def gaussian(self) -> DiagonalGaussian:
        """The Gaussian with its means and standard deviations."""
        return DiagonalGaussian(self.mean, self.scale)


Distribution = DiagonalGaussian | GaussianMixture


def fitted_kl(posterior: DiagonalGaussian, prior: Distribution) -> Tensor:
    """KL(posterior || prior) of each image, ``(N,)``, with gradients that fit mixtures.

    A mixture is fitted to the posteriors, but they are drawn to its Gaussian, not to its
    components: narrow components hold fast what is in them, and alternatives that the posterior
    does not tell apart by then it would never tell apart. The value is that of the mixture; of a
    Gaussian, value and gradients are the ordinary ones.
    """
    if isinstance(prior, DiagonalGaussian):
        return posterior.kl_divergence(prior)
    fixed = DiagonalGaussian(posterior.mean.detach(), posterior.scale.detach())
    gaussian = prior.gaussian()
    drawn = posterior.kl_divergence(
        DiagonalGaussian(gaussian.mean.detach(), gaussian.scale.detach())
    )
    return fixed.kl_divergence(prior) + (drawn - drawn.detach())


def spread_means_(bias: Tensor) -> None:
    """Let the components' means start apart."""
    nn.init.normal_(bias, std=SPREAD_AT_START)


def refuse_wrong_components(count: int) -> None:
    """Raise a ValueError unless there is a component."""
    if count < 1:
        raise ValueError(f"a prior needs at least 1 component, not {count!r}")
