"""A latent vector for each image: what encodes it, and what combines it with a U-Net's features."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

from torch import Tensor, nn

from revgrad.models.blocks import ConvStyle
from revgrad.models.gaussian import (
    DiagonalGaussian,
    before_softplus,
    refuse_wrong_start,
    start_small_,
)
from revgrad.models.mixture import GaussianMixture, refuse_wrong_components, spread_means_
from revgrad.models.unet import Encoder, he_normal_

SCALES = {"softplus": DiagonalGaussian.from_unbounded, "exp": DiagonalGaussian.from_log_scale}
# What they make a standard deviation of.
STARTS: dict[str, Callable[[float], float]] = {"softplus": before_softplus, "exp": math.log}


class VectorEncoder(nn.Module):
    """An encoder whose deepest map, averaged over space, gives the distribution of a vector.

    Args:
        style, in_channels, channels, depth: as in `revgrad.models.unet.Encoder`.
        latent_channels: length of the vector.
        scale: "softplus" or "exp", what makes standard deviations of the last layer's numbers.
        average_scale: whether mean and scale are averaged over space, not what they are made of.
            The mean is the same either way.
        components: Gaussians; more than one make it a mixture.
        start_scale: standard deviations at the start; None: what zeros make, softplus(0) or 1.
    """

    def __init__(
        self,
        style: ConvStyle,
        in_channels: int,
        channels: Sequence[int],
        depth: int,
        latent_channels: int,
        *,
        scale: str = "softplus",
        average_scale: bool = False,
        components: int = 1,
        start_scale: float | None = None,
    ) -> None:
        super().__init__()
        if scale not in SCALES:
            raise ValueError(f"scale must be one of {', '.join(SCALES)}, not {scale!r}")
        if latent_channels < 1:
            raise ValueError(f"latent_channels must be at least 1, not {latent_channels!r}")
        refuse_wrong_components(components)
        refuse_wrong_start(start_scale)
        self.encoder = Encoder(style, in_channels, channels, depth)
        outputs = [components * latent_channels] * 2 + [components] * (components > 1)
        self.head = replace(style, bias=True).conv(channels[-1], sum(outputs))
        he_normal_(self.encoder, style.norm)
        # Near N(0, softplus(0)) or N(0, 1) whatever the image. Behind reversible rows, whose maps
        # are larger, He's start makes scales near zero, and an enormous divergence.
        start_small_(self.head)
        bias = cast(Tensor, self.head.bias)
        if components > 1:
            spread_means_(bias[: outputs[0]])
        if start_scale is not None:
            unbounded = STARTS[scale](start_scale)
            nn.init.constant_(bias[outputs[0] : 2 * outputs[0]], unbounded)
        self._outputs = outputs
        self._components = components
        self._scale = scale
        self._average_scale = average_scale

    def forward(self, x: Tensor) -> DiagonalGaussian | GaussianMixture:
        """``(N, in_channels, *spatial)`` to the distribution of ``(N, latent_channels)``."""
        features = self.encoder(x)[-1]
        space = tuple(range(2, x.dim()))
        if not self._average_scale:
            features = features.mean(space, keepdim=True)
        mean, scale, *logits = self.head(features).split(self._outputs, 1)
        mean, scale = SCALES[self._scale](mean, scale)
        gaussian = DiagonalGaussian(mean.mean(space), scale.mean(space))
        if not logits:
            return gaussian
        return GaussianMixture.from_channels(gaussian, logits[0], self._components)


class Combination(nn.Module):
    """A latent vector at every pixel of a feature map, through 1x1 convolutions to the classes.

    The first convolution is taken as the sum of its two parts, so that the vector is never spread
    over the pixels, and the features' part serves all samples.

    Args:
        style: how units are built.
        channels: of the features and between the convolutions.
        latent_channels: length of the vector.
        out_channels: number of classes.
        depth: units before the last convolution.
    """

    def __init__(
        self, style: ConvStyle, channels: int, latent_channels: int, out_channels: int, depth: int
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"combination_depth must be at least 1, not {depth!r}")
        self.from_features = style.conv(channels, channels)
        self.from_latent = nn.Linear(latent_channels, channels, bias=False)
        # Of the first unit, what comes after its convolution.
        rest: list[nn.Module] = list(style.unit(channels, channels, 1))[1:]
        rest += [style.unit(channels, channels, 1) for _ in range(depth - 1)]
        self.rest = nn.Sequential(*rest, replace(style, bias=True).conv(channels, out_channels))
        he_normal_(self, style.norm)

    def forward(self, projected: Tensor, latent: Tensor) -> Tensor:
        """Logits from `from_features` of the features and a vector ``(N, latent_channels)``."""
        vector = self.from_latent(latent.to(self.from_latent.weight.dtype))
        spread = vector[(..., *[None] * (projected.dim() - 2))]
        logits: Tensor = self.rest(projected + spread)
        return logits
