"""Samples of a deterministic network's softmax, each pixel drawn by itself."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from revgrad.models.segmenter import LossTerms, Segmenter
from revgrad.models.unet import UNet

# The other classes' logits are 0. In float32 the softmax of the drawn class is 1 to rounding,
# while its logarithm, which some metrics take, stays finite.
DRAWN_LOGIT = 20.0


class IndependentPixels(Segmenter):
    """Draws the label of each pixel from a network's softmax, independently of all others.

    What a deterministic network says about its uncertainty, taken as a distribution of
    segmentations: right in each pixel, noise in each sample. A sample is a label map, given out as
    logits: 20 for the label that was drawn and 0 for all others. Draws have no gradient.

    Args:
        net: a network whose own samples need not differ, such as a `UNet`. Of others, one sample
            is drawn for each call, and all pixels from its softmax.
    """

    def __init__(self, net: Segmenter) -> None:
        super().__init__(net.spatial_dims, net.in_channels, net.out_channels, divisor=net.divisor)
        self.net = net

    def loss(self, image: Tensor, masks: Tensor) -> LossTerms:
        """The network's own loss."""
        return self.net.loss(image, masks)

    def sample(self, image: Tensor, n: int) -> Tensor:
        """Draw n label maps, as logits 0 and 20; the network runs once."""
        self.check_count(n)
        logits = self.net(image).detach()
        dtype = torch.promote_types(logits.dtype, torch.float32)
        probabilities = logits.to(dtype).softmax(1)

        def draw() -> Tensor:
            # The first of exponential clocks with rates p rings with probability p.
            clocks = torch.empty_like(probabilities).exponential_()
            label = (probabilities / clocks).argmax(1)
            one_hot = F.one_hot(label, self.out_channels).movedim(-1, 1)
            return DRAWN_LOGIT * one_hot.to(logits.dtype)

        return torch.stack([draw() for _ in range(n)], 1)


def independent_pixels_of_unet(
    spatial_dims: int, in_channels: int, out_channels: int, **unet: Any
) -> IndependentPixels:
    """Independent pixels of a `UNet`, which gets all arguments."""
    return IndependentPixels(UNet(spatial_dims, in_channels, out_channels, **unet))
