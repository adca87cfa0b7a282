"""Dropout that stays on: each pass through the U-Net is a sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from revgrad.models.unet import CHANNELS, UNet


class DropoutUNet(UNet):
    """A U-Net with dropout in its innermost levels, also when it predicts.

    Kendall et al. 2015 (Bayesian SegNet), as Kohl et al. 2018 compare with it: numbers that enter
    the three innermost levels, on the way down and on the way up, are dropped with p = 0.5. Eval
    mode leaves the dropout on. The levels above the first dropout run once for all samples.

    Args:
        dropout, dropout_levels: as in `UNet`.
        spatial_dims, in_channels, out_channels, channels, depth, options: of `UNet`.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = CHANNELS,
        depth: int = 3,
        *,
        dropout: float = 0.5,
        dropout_levels: int = 3,
        **options: Any,
    ) -> None:
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            channels,
            depth,
            dropout=dropout,
            dropout_levels=dropout_levels,
            **options,
        )

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all modules but the dropouts, which stay on."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.train()
        return self

    def sample(self, image: Tensor, n: int) -> Tensor:
        """Draw n segmentations, with new dropout for each."""
        self.check_count(n)
        self.check_image(image)
        encoder, decoder = self.body.encoder, self.body.decoder
        split = encoder.first_dropout
        fixed = encoder(image, 0, split)

        def draw() -> Tensor:
            deeper = encoder(fixed[-1] if fixed else image, split)
            logits: Tensor = self.head(decoder([*fixed, *deeper])[0])
            return logits

        return torch.stack([draw() for _ in range(n)], 1)
