"""The Probabilistic U-Net: a U-Net and a latent vector that says which segmentation is meant."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from revgrad.models.blocks import ConvStyle, Named
from revgrad.models.gaussian import DiagonalGaussian
from revgrad.models.latent_vector import Combination, VectorEncoder
from revgrad.models.losses import checked_class_weights, cross_entropy_per_image
from revgrad.models.mixture import Distribution, fitted_kl
from revgrad.models.segmenter import LossTerms, Segmenter
from revgrad.models.unet import CHANNELS, UNetBody, divisor_of, he_normal_


class ProbabilisticUNet(Segmenter):
    """The Probabilistic U-Net (Kohl et al. 2018).

    A prior network makes the distribution of a latent vector from the image, a posterior network,
    in training, from image and mask. A draw is combined with the last map of a U-Net by 1x1
    convolutions. The loss is -E_q log p(mask | image, z) + beta KL(q || p), q the posterior and p
    the prior, with one draw of z for each image: the cross-entropy is summed over pixels, both are
    means over the batch.

    The defaults are those of the authors' code for Cityscapes, but for the scale: softplus, as
    exponentials are known to end in NaN. `PRESETS` has the versions of three publications.

    Args:
        spatial_dims: spatial axes, 2 or 3.
        in_channels: channels of the image.
        out_channels: number of classes.
        channels: of each level, in the U-Net, the prior and the posterior network.
        depth: units of each level.
        latent_channels: length of the latent vector.
        beta: weight of the KL divergence.
        combination_depth: 1x1 units that combine features and latent vector, before the last
            convolution.
        scale: "softplus", or "exp" (clamped), what makes the latent vector's standard deviations.
        average_scale: whether they are averaged over space, as in PHiSeg's code, not the deepest
            features that they are made of.
        conditional_prior: False: the prior is N(0, 1) for each image, and there is no prior
            network.
        prior_components: Gaussians of the prior; more than one make it a mixture, see
            `revgrad.models.GaussianMixture`. The posterior's gradients are then not those of the
            loss above: it is drawn to the mixture's mean and variance.
        posterior_start: standard deviations of the posterior at the start; None: as the prior's.
            Small ones, such as 0.1, let the first steps see what is in its means.
        class_weights: how much a pixel of each class counts in the cross-entropy; None: 1. Small
            structures may need more than their pixels to be told apart in time.
        align_corners: of the upsampling.
        norm, act, bias: of all units, see `revgrad.models.blocks.ConvStyle`. Last convolutions have
            a bias in any case.
        reversible: whether the rows of a level are reversible sequences, in all three networks.
        couplings_per_unit, arithmetic: of the reversible sequences, see `ConvStyle`.

    Shapes:
        ``net(image)``: (N, in_channels, *spatial) to (N, out_channels, *spatial), each axis a
        multiple of ``2 ** (levels - 1)``, as logits.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = CHANNELS,
        depth: int = 3,
        *,
        latent_channels: int = 6,
        beta: float = 1.0,
        combination_depth: int = 3,
        scale: str = "softplus",
        average_scale: bool = False,
        conditional_prior: bool = True,
        prior_components: int = 1,
        posterior_start: float | None = None,
        class_weights: Sequence[float] | None = None,
        align_corners: bool = True,
        norm: Named | None = None,
        act: Named = "relu",
        bias: bool = True,
        reversible: bool = False,
        couplings_per_unit: int = 1,
        arithmetic: str = "float",
    ) -> None:
        divisor = divisor_of(channels)
        super().__init__(spatial_dims, in_channels, out_channels, divisor=divisor, norm=norm)
        if not 0 <= beta < math.inf:
            raise ValueError(f"beta must be finite and not negative, it is {beta!r}")
        self.beta = beta
        self.latent_channels = latent_channels
        weights = checked_class_weights(class_weights, out_channels)
        self.register_buffer("class_weights", weights, persistent=False)
        style = ConvStyle(spatial_dims, norm, act, bias, reversible, couplings_per_unit, arithmetic)
        self.body = UNetBody(style, in_channels, channels, depth, align_corners=align_corners)
        he_normal_(self.body, norm)
        encoder = partial(
            VectorEncoder,
            style,
            channels=channels,
            depth=depth,
            latent_channels=latent_channels,
            scale=scale,
            average_scale=average_scale,
        )
        if prior_components != 1 and not conditional_prior:
            raise ValueError(
                f"the prior N(0, 1) has one component, prior_components is {prior_components!r}"
            )
        self.prior_network = (
            encoder(in_channels, components=prior_components) if conditional_prior else None
        )
        self.posterior_network = encoder(in_channels + out_channels, start_scale=posterior_start)
        self.combination = Combination(
            style, channels[0], latent_channels, out_channels, combination_depth
        )

    class_weights: Tensor | None

    def loss(self, image: Tensor, masks: Tensor) -> LossTerms:
        """The negative evidence lower bound, with beta."""
        self.check_masks(image, masks)
        posterior = self._posterior(image, masks)
        logits = self.combination(self._projected(image), posterior.rsample())
        cross_entropy = cross_entropy_per_image(logits, masks, self.class_weights).mean()
        kl = fitted_kl(posterior, self._prior(image)).mean()
        total = cross_entropy + self.kl_factor * self.beta * kl
        return LossTerms(total, cross_entropy.detach()[None], kl.detach()[None])

    def sample(self, image: Tensor, n: int) -> Tensor:
        """Draw n segmentations; the U-Net and the prior network run once."""
        self.check_count(n)
        self.check_image(image)
        prior, projected = self._prior(image), self._projected(image)
        return torch.stack([self.combination(projected, prior.rsample()) for _ in range(n)], 1)

    def reconstruct(self, image: Tensor, masks: Tensor) -> Tensor:
        self.check_masks(image, masks)
        logits: Tensor = self.combination(
            self._projected(image), self._posterior(image, masks).mean
        )
        return logits

    def prior(self, image: Tensor) -> list[Distribution]:
        self.check_image(image)
        return [self._prior(image)]

    def posterior(self, image: Tensor, masks: Tensor) -> list[DiagonalGaussian]:
        self.check_masks(image, masks)
        return [self._posterior(image, masks)]

    def _prior(self, image: Tensor) -> Distribution:
        if self.prior_network is not None:
            prior: Distribution = self.prior_network(image)
            return prior
        dtype = torch.promote_types(image.dtype, torch.float32)
        mean = image.new_zeros(len(image), self.latent_channels, dtype=dtype)
        return DiagonalGaussian(mean, torch.ones_like(mean))

    def _posterior(self, image: Tensor, masks: Tensor) -> DiagonalGaussian:
        one_hot = F.one_hot(masks.long(), self.out_channels).movedim(-1, 1).to(image.dtype)
        posterior: DiagonalGaussian = self.posterior_network(torch.cat([image, one_hot - 0.5], 1))
        return posterior

    def _projected(self, image: Tensor) -> Tensor:
        """The features' part of the combination, which all samples share."""
        projected: Tensor = self.combination.from_features(self.body(image)[0])
        return projected


# "cityscapes" is the authors' code, "lidc" Knegt's, whose cross-entropy is summed over its batch of
# five too: beta = 10 there is 2 here. "phiseg" is what PHiSeg was compared with, but for the
# decoder, whose levels there have the deeper level's channels.
PRESETS: Mapping[str, Callable[..., ProbabilisticUNet]] = {
    "probabilistic-unet": ProbabilisticUNet,
    "probabilistic-unet-cityscapes": partial(ProbabilisticUNet, scale="exp"),
    "probabilistic-unet-lidc": partial(
        ProbabilisticUNet, channels=(32, 64, 128, 192), latent_channels=2, scale="exp", beta=2.0
    ),
    "probabilistic-unet-phiseg": partial(
        ProbabilisticUNet,
        norm=("batch", {"eps": 1e-3, "momentum": 0.01}),
        bias=False,
        average_scale=True,
        align_corners=False,
    ),
}
