"""Networks with one answer to an image: all of their samples are the same."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from revgrad.models.iunet import iUNet
from revgrad.models.losses import cross_entropy_per_image
from revgrad.models.segmenter import LossTerms, Segmenter


class OneAnswer(Segmenter):
    """A segmenter that computes one map of logits."""

    @abstractmethod
    def logits(self, image: Tensor) -> Tensor:
        """``(N, out_channels, *spatial)``."""

    def loss(self, image: Tensor, masks: Tensor) -> LossTerms:
        """The cross-entropy, summed over pixels, mean over the batch."""
        self.check_masks(image, masks)
        cross_entropy = cross_entropy_per_image(self.logits(image), masks).mean()
        return LossTerms(cross_entropy, cross_entropy.detach()[None], cross_entropy.new_empty(0))

    def sample(self, image: Tensor, n: int) -> Tensor:
        """N times the same logits, which are held once."""
        self.check_count(n)
        logits = self.logits(image)[:, None]
        return logits.expand(-1, n, *logits.shape[2:])


class DeterministicSegmenter(OneAnswer):
    """A network of yours, MONAI's or torch's, trained and asked like every other one here.

    All of its samples are the same. The loss is the cross-entropy, summed over pixels.

    Args:
        net: called with images ``(N, in_channels, *spatial)``, gives logits
            ``(N, out_channels, *spatial)``. With outputs beside them (deep supervision) it is
            refused when it is called.
        spatial_dims: spatial axes, 2 or 3.
        in_channels: channels of the image.
        out_channels: number of classes.
        divisor: what each spatial axis of an image must be a multiple of.
    """

    def __init__(
        self,
        net: nn.Module,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        divisor: int = 1,
    ) -> None:
        super().__init__(spatial_dims, in_channels, out_channels, divisor=divisor)
        self.net = net

    def logits(self, image: Tensor) -> Tensor:
        """``(N, out_channels, *spatial)``.

        Raises:
            TypeError: The network gives no tensor.
            ValueError: The image does not fit, or the logits have another shape.
        """
        self.check_image(image)
        logits = self.net(image)
        if not isinstance(logits, Tensor):
            raise TypeError(
                f"{type(self.net).__name__} must give one tensor, the logits, not a "
                f"{type(logits).__name__}"
            )
        expected = (len(image), self.out_channels, *image.shape[2:])
        if tuple(logits.shape) != expected:
            raise ValueError(
                f"{type(self.net).__name__} must give logits {expected}, not {tuple(logits.shape)}"
            )
        return logits


def iunet_segmenter(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    channels: Sequence[int] = (32, 64, 128),
    depths: Sequence[int] = (2, 2, 2),
    **options: Any,
) -> DeterministicSegmenter:
    """An `iUNet` as a segmenter; further arguments are the iUNet's."""
    net = iUNet(spatial_dims, in_channels, out_channels, channels, depths, **options)
    return DeterministicSegmenter(net, spatial_dims, in_channels, out_channels)
