"""PHiSeg and RevPHiSeg: a hierarchy of latent maps, with plain or with reversible blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from revgrad.models.blocks import ConvStyle, Named
from revgrad.models.elbo import ResidualCrossEntropy, accumulated, elbo
from revgrad.models.gaussian import DiagonalGaussian
from revgrad.models.hierarchy import Encoder, Likelihood, Plan
from revgrad.models.losses import checked_class_weights
from revgrad.models.mixture import Distribution
from revgrad.models.segmenter import LossTerms, Segmenter
from revgrad.models.unet import CHANNELS, divisor_of
from revgrad.nn import Recompute, ReversibleSequence, fuse

BATCH_NORM = ("batch", {"eps": 1e-3, "momentum": 0.01})

# So many images at least go through the ladder of latents at a time when samples are drawn.
_SAMPLES_AT_ONCE = 16


class PHiSeg(Segmenter):
    """PHiSeg: latent maps on several resolutions, each given the image and the next deeper one.

    Baumgartner et al., *PHiSeg: Capturing Uncertainty in Medical Image Segmentation* (2019), as
    re-implemented in PyTorch for RevPHiSeg (Gantenbein et al. 2020). A prior of the image and a
    posterior of image and mask encode latents, a likelihood makes logits of latents alone; the
    logits of all levels add up. Trained by the evidence lower bound, in which each level is scored
    on the sum of itself and everything deeper, and the prior of a level gets the deeper z that the
    posterior drew. Made of torch's own layers and trained by ordinary autograd, unless asked for
    otherwise.

    Args:
        spatial_dims: Spatial axes, 2 or 3.
        in_channels: Channels of the image.
        out_channels: Number of classes.
        channels: Of each resolution, the finest first; each is half the size of the one before.
        latent_levels: On how many of the coarsest resolutions there are latent maps.
        latent_channels: Channels of a latent map.
        depth: Convolution units of each resolution in the encoders.
        latent_depth: Units between a level's features and its distribution.
        decoder_depth: Units of every other row.
        norm: A name, or name and keyword arguments, see `ConvStyle`; None: no norm.
        act: The same for the activation.
        bias: Whether convolutions have a bias. Last ones have one in any case.
        kl_weights: Weight of the KL divergence of each latent level, the finest first, or one for
            all. None: that of level l is ``(2**spatial_dims)**l``, for each level has so many times
            fewer numbers than the one above.
        prior_components: Gaussians of the prior's deepest level; more than one make it a mixture,
            see `revgrad.models.GaussianMixture`. The gradients of the deepest posterior are then
            not those of the bound: it is drawn to the mixture's mean and variance.
        posterior_start: Standard deviations of the posterior at the start; None: as the prior's.
            Small ones, such as 0.1, let the first steps see what is in its means.
        class_weights: How much a pixel of each class counts in the cross-entropy; None: 1. Small
            structures may need more than their pixels to be told apart in time.
        reversible: Whether rows of units are reversible sequences, see `RevPHiSeg`.
        couplings_per_unit: Blocks of two couplings that stand for a unit in a reversible row.
        recompute_glue: Whether what lies between the rows is run again in the backward pass instead
            of stored, 1x1 convolutions run before upsampling, and norm and activation are fused.
            The function and the state_dict are the same.
        save_memory: If False, everything is run by ordinary autograd. May be changed at any time.
        arithmetic: "float" or "exact", see `ReversibleSequence`.

    Attributes:
        kl_weights: The weights.
        divisor: What each axis of an image must be a multiple of.

    Raises:
        ValueError: An argument has a value that is not accepted.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = CHANNELS,
        latent_levels: int = 5,
        latent_channels: int = 2,
        *,
        depth: int = 3,
        latent_depth: int = 2,
        decoder_depth: int = 2,
        norm: Named | None = BATCH_NORM,
        act: Named = "relu",
        bias: bool = True,
        kl_weights: float | Sequence[float] | None = None,
        prior_components: int = 1,
        posterior_start: float | None = None,
        class_weights: Sequence[float] | None = None,
        reversible: bool = False,
        couplings_per_unit: int = 1,
        recompute_glue: bool = False,
        save_memory: bool = True,
        arithmetic: str = "float",
    ) -> None:
        divisor = divisor_of(channels)
        super().__init__(spatial_dims, in_channels, out_channels, divisor=divisor, norm=norm)
        _refuse_wrong_levels(channels, latent_levels, latent_channels)
        for name, value in (("depth", depth), ("latent_depth", latent_depth)):
            _refuse_below_one(name, value)
        _refuse_below_one("decoder_depth", decoder_depth)
        self.kl_weights = _weights(kl_weights, latent_levels, spatial_dims)
        style = ConvStyle(spatial_dims, norm, act, bias, reversible, couplings_per_unit, arithmetic)
        plan = Plan(
            style,
            tuple(channels),
            latent_levels,
            latent_channels,
            depth,
            latent_depth,
            decoder_depth,
            recompute_glue,
        )
        self.prior_network = Encoder(plan, in_channels, prior_components)
        self.posterior_network = Encoder(
            plan, in_channels + out_channels, start_scale=posterior_start
        )
        self.likelihood = Likelihood(plan, out_channels)
        self.cross_entropy = plan.recomputed(
            ResidualCrossEntropy(checked_class_weights(class_weights, out_channels))
        )
        self._recompute_glue = recompute_glue
        if recompute_glue:
            fuse(self)
        self.save_memory = save_memory

    @property
    def save_memory(self) -> bool:
        """Whether activations are computed back or run again instead of stored."""
        return self._save_memory

    @save_memory.setter
    def save_memory(self, save_memory: bool) -> None:
        self._save_memory = save_memory
        for module in self.modules():
            if isinstance(module, ReversibleSequence):
                module.save_memory = save_memory
            elif isinstance(module, Recompute):
                module.save_memory = save_memory and self._recompute_glue

    def loss(self, image: Tensor, masks: Tensor) -> LossTerms:
        """The negative evidence lower bound of one annotator's masks."""
        self.check_masks(image, masks)
        features = self.prior_network.features(image)
        posterior, latents = self._posterior(image, masks, draw=True)
        below = [*latents[1:], None]
        prior = [
            self.prior_network.level(level, *given)
            for level, given in enumerate(zip(features, below, strict=True))
        ]
        reconstruction = self.cross_entropy(*self.likelihood(latents), masks=masks)
        weights = [self.kl_factor * weight for weight in self.kl_weights]
        return elbo(reconstruction, posterior, prior, weights)

    def sample(self, image: Tensor, n: int) -> Tensor:
        """Draw n segmentations of each image: logits ``(N, n, out_channels, *spatial)``."""
        self.check_image(image)
        self.check_count(n)
        features = self.prior_network.features(image)
        at_once = max(1, _SAMPLES_AT_ONCE // max(1, len(image)))
        drawn = [self._drawn(features, min(at_once, n - i)) for i in range(0, n, at_once)]
        return torch.cat(drawn, 1)

    def reconstruct(self, image: Tensor, masks: Tensor) -> Tensor:
        """Logits ``(N, out_channels, *spatial)`` from the posterior's means."""
        self.check_masks(image, masks)
        _, latents = self._posterior(image, masks, draw=False)
        return accumulated(self.likelihood(latents))[0]

    def prior(self, image: Tensor) -> list[Distribution]:
        """The prior of each latent level, the finest first; deeper ones are drawn."""
        self.check_image(image)
        return _descend(self.prior_network, self.prior_network.features(image), draw=True)[0]

    def posterior(self, image: Tensor, masks: Tensor) -> list[DiagonalGaussian]:
        """The posterior of each latent level, the finest first; deeper ones are drawn."""
        self.check_masks(image, masks)
        return self._posterior(image, masks, draw=True)[0]

    def _posterior(
        self, image: Tensor, masks: Tensor, draw: bool
    ) -> tuple[list[DiagonalGaussian], list[Tensor]]:
        one_hot = F.one_hot(masks.long(), self.out_channels).movedim(-1, 1).to(image.dtype)
        features = self.posterior_network.features(torch.cat((image, one_hot - 0.5), 1))
        found, latents = _descend(self.posterior_network, features, draw)
        return cast(list[DiagonalGaussian], found), latents

    def _drawn(self, features: Sequence[Tensor], n: int) -> Tensor:
        """Draw n segmentations of each image, given the prior's features of it."""
        repeated = [f.repeat_interleave(n, 0) for f in features]
        _, latents = _descend(self.prior_network, repeated, draw=True)
        return accumulated(self.likelihood(latents))[0].unflatten(0, (-1, n))


class RevPHiSeg(PHiSeg):
    """RevPHiSeg: PHiSeg with reversible blocks in the place of its convolution units.

    Gantenbein, Erdil and Konukoglu, *RevPHiSeg: A Memory-Efficient Neural Network for Uncertainty
    Quantification in Medical Image Segmentation* (2020). A unit becomes a pair of additive
    couplings of half the channels, with a 1x1 unit in front of a row where the width changes. In
    the paper these, pooling, upsampling and concatenation are stored; here they are run again in
    the backward pass (``recompute_glue=False`` for the paper's).

    It has a third fewer weights than PHiSeg; with ``couplings_per_unit=2, latent_depth=2`` about as
    many.

    Args:
        spatial_dims: As of `PHiSeg`.
        in_channels: As of `PHiSeg`.
        out_channels: As of `PHiSeg`.
        channels: As of `PHiSeg`.
        latent_levels: As of `PHiSeg`.
        latent_channels: As of `PHiSeg`.
        latent_depth: As of `PHiSeg`, three by default.
        kl_weights: As of `PHiSeg`, 1 by default, as in the paper.
        recompute_glue: As of `PHiSeg`.
        **options: The other keyword arguments of `PHiSeg`.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = CHANNELS,
        latent_levels: int = 5,
        latent_channels: int = 2,
        *,
        latent_depth: int = 3,
        kl_weights: float | Sequence[float] | None = 1.0,
        recompute_glue: bool = True,
        **options: object,
    ) -> None:
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            channels,
            latent_levels,
            latent_channels,
            latent_depth=latent_depth,
            kl_weights=kl_weights,
            recompute_glue=recompute_glue,
            **{"reversible": True, **options},  # type: ignore[arg-type]
        )


# "revphiseg-twin" differs from "revphiseg" in nothing but the blocks; "revphiseg-iso" has about as
# many weights as "phiseg".
PRESETS: Mapping[str, Callable[..., PHiSeg]] = {
    "phiseg": PHiSeg,
    "revphiseg": RevPHiSeg,
    "revphiseg-iso": partial(RevPHiSeg, couplings_per_unit=2, latent_depth=2),
    "revphiseg-twin": partial(PHiSeg, latent_depth=3, kl_weights=1.0),
}


def _descend(
    network: Encoder, features: Sequence[Tensor], draw: bool
) -> tuple[list[Distribution], list[Tensor]]:
    """Distributions and latents of all levels, from the deepest on; drawn, or their means."""
    found: list[Distribution] = []
    latents: list[Tensor] = []
    for level in reversed(range(len(features))):
        below = latents[0] if latents else None
        found.insert(0, network.level(level, features[level], below))
        z = found[0].rsample() if draw else found[0].mean
        # Distributions are float32 at least, also where all weights are in half precision.
        latents.insert(0, z.to(network.dtype))
    return found, latents


def _weights(
    given: float | Sequence[float] | None, latent_levels: int, spatial_dims: int
) -> tuple[float, ...]:
    if given is None:
        return tuple(float(2 ** (spatial_dims * level)) for level in range(latent_levels))
    if isinstance(given, int | float):
        given = [given] * latent_levels
    if len(given) != latent_levels or not all(0 <= weight < math.inf for weight in given):
        raise ValueError(
            f"kl_weights must be {latent_levels} finite numbers that are not negative, one for "
            f"each latent level, not {given!r}"
        )
    return tuple(map(float, given))


def _refuse_wrong_levels(channels: Sequence[int], latent_levels: int, latent_channels: int) -> None:
    if not 1 <= latent_levels <= len(channels):
        raise ValueError(
            f"latent_levels must be 1 to {len(channels)}, for channels={tuple(channels)} has so "
            f"many resolutions, not {latent_levels}"
        )
    _refuse_below_one("latent_channels", latent_channels)


def _refuse_below_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
