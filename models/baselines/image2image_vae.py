"""A conditional VAE whose prior does not see the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from revgrad.models.probabilistic_unet import ProbabilisticUNet
from revgrad.models.unet import CHANNELS


class Image2ImageVAE(ProbabilisticUNet):
    """A Probabilistic U-Net with the prior N(0, 1) for each image.

    After the comparison with Zhu et al. 2017 (BicycleGAN's cVAE) in Kohl et al. 2018. Posterior,
    loss and where the latent vector enters are the Probabilistic U-Net's.

    Args:
        spatial_dims, in_channels, out_channels, channels, depth, options: of `ProbabilisticUNet`.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = CHANNELS,
        depth: int = 3,
        **options: Any,
    ) -> None:
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            channels,
            depth,
            conditional_prior=False,
            **options,
        )
