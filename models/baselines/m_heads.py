"""One U-Net with several last layers: each is a sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from revgrad.models.baselines.unet_ensemble import refuse_more_than
from revgrad.models.losses import cross_entropy_per_image
from revgrad.models.segmenter import LossTerms, Segmenter
from revgrad.models.unet import UNet


class MHeads(Segmenter):
    """A U-Net with M 1x1 convolutions to the classes, trained so that they differ.

    Rupprecht et al. 2017 (relaxed winner takes all), as Kohl et al. 2018 compare with it: of each
    image's M cross-entropies the smallest has the weight 1 - epsilon, each other one
    epsilon / (M - 1). The first sample is the first head's prediction, and so on.

    Args:
        heads: M.
        epsilon: what the heads share that are not the best of an image.
        spatial_dims, in_channels, out_channels, unet: of `UNet`.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        heads: int = 4,
        epsilon: float = 0.05,
        **unet: Any,
    ) -> None:
        if heads < 1:
            raise ValueError(f"at least one head is needed, not heads={heads}")
        if not 0 <= epsilon < 1:
            raise ValueError(f"epsilon must be at least 0 and below 1, not {epsilon!r}")
        # One convolution to all heads' classes is M convolutions side by side.
        net = UNet(spatial_dims, in_channels, heads * out_channels, **unet)
        super().__init__(
            spatial_dims, in_channels, out_channels, divisor=net.divisor, norm=net.deepest_norm
        )
        self.heads = self.most_samples = heads
        self.epsilon = epsilon
        self.net = net

    def loss(self, image: Tensor, masks: Tensor) -> LossTerms:
        """The weighted sum of the heads' cross-entropies; `reconstruction` is the best head's."""
        self.check_masks(image, masks)
        logits = self._logits(image).unbind(1)
        losses = torch.stack([cross_entropy_per_image(each, masks) for each in logits], 1)
        best = losses.min(1).values
        other = self.epsilon / (self.heads - 1) if self.heads > 1 else 0.0
        total = ((1 - self.heads * other) * best + other * losses.sum(1)).mean()
        return LossTerms(total, best.mean().detach()[None], total.new_empty(0))

    def sample(self, image: Tensor, n: int) -> Tensor:
        """The predictions of the first n heads, which do not change from call to call.

        Raises:
            ValueError: n is larger than the number of heads.
        """
        self.check_count(n)
        refuse_more_than(self.heads, n, "heads")
        return self._logits(image)[:, :n]

    def _logits(self, image: Tensor) -> Tensor:
        """``(N, heads, out_channels, *spatial)``."""
        self.check_image(image)
        return self.net.logits(image).unflatten(1, (self.heads, self.out_channels))
