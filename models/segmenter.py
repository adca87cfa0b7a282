"""What every segmentation network of this package can be asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from revgrad.dataless import has_data
from revgrad.models.gaussian import DiagonalGaussian
from revgrad.models.mixture import Distribution
from revgrad.nn import ReversibleSequence


class LossTerms(NamedTuple):
    """What a training step minimises, and the parts that it is made of.

    Attributes:
        total: scalar; call ``total.backward()``.
        reconstruction: ``(levels,)``, detached: the cross-entropy of each level that is scored,
            the finest first, summed over pixels, mean over the batch, without weights. One level
            for most networks.
        kl: ``(latent levels,)``, detached: KL(posterior || prior) of each latent level, the finest
            first, summed over its elements, mean over the batch, without weights. Empty for
            networks without latent variables.
    """

    total: Tensor
    reconstruction: Tensor
    kl: Tensor


class Segmenter(nn.Module, ABC):
    """A network that draws segmentations of an image.

    Images are ``(N, in_channels, *spatial)``, masks ``(N, *spatial)`` integer labels below
    `out_channels`, one annotator's for each image. What is given out are logits.

    ``net(image)`` is one sample's logits, ``(N, out_channels, *spatial)``, so that a network goes
    wherever a plain one does. ``net(image, masks)`` is ``net.loss(image, masks)``: wrappers such as
    DistributedDataParallel want to be called themselves.

    Args:
        spatial_dims: spatial axes, 2 or 3.
        in_channels: channels of the image.
        out_channels: number of classes.
        divisor: what each spatial axis of an image must be a multiple of.

    Attributes:
        most_samples: how many samples can be drawn at most, None for any number.
        kl_factor: what the weights of KL divergences in the loss are multiplied with; 1 but in the
            first steps of a training that warms up.
    """

    most_samples: int | None = None

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, *, divisor: int = 1
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, not {spatial_dims!r}")
        if in_channels < 1 or out_channels < 2:
            raise ValueError(
                "at least one channel and two classes are needed, not in_channels="
                f"{in_channels} and out_channels={out_channels}"
            )
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.divisor = divisor
        self.kl_factor = 1.0

    @property
    def save_memory(self) -> bool:
        """Whether reversible sequences compute activations back instead of storing them.

        May be changed at any time; without effect where there are none.
        """
        return any(sequence.save_memory for sequence in self._reversible_sequences())

    @save_memory.setter
    def save_memory(self, value: bool) -> None:
        for sequence in self._reversible_sequences():
            sequence.save_memory = value

    def _reversible_sequences(self) -> Iterator[ReversibleSequence]:
        return (m for m in self.modules() if isinstance(m, ReversibleSequence))

    def forward(self, image: Tensor, masks: Tensor | None = None) -> Tensor | LossTerms:
        """One sample's logits, or with masks the loss."""
        if masks is None:
            return self.sample(image, 1)[:, 0]
        return self.loss(image, masks)

    @abstractmethod
    def loss(self, image: Tensor, masks: Tensor) -> LossTerms:
        """The training loss of images and one annotator's masks."""

    @abstractmethod
    def sample(self, image: Tensor, n: int) -> Tensor:
        """Draw n segmentations of each image: logits ``(N, n, out_channels, *spatial)``.

        What does not depend on the draw is computed once. Gradients flow; call it under
        `torch.no_grad` or `torch.inference_mode` for predictions, and in eval mode.
        """

    def reconstruct(self, image: Tensor, masks: Tensor) -> Tensor:
        """Logits ``(N, out_channels, *spatial)`` from the posterior's mean, given the masks.

        Networks without latent variables can't see the masks and raise a TypeError.
        """
        raise TypeError(f"{type(self).__name__} has no latent variables to encode masks in")

    def prior(self, image: Tensor) -> list[Distribution]:
        """The prior of each latent level given the image, the finest first.

        Where a level depends on a deeper one, that one is drawn. Empty without latent variables.
        """
        return []

    def posterior(self, image: Tensor, masks: Tensor) -> list[DiagonalGaussian]:
        """The posterior of each latent level given image and masks, the finest first."""
        return []

    def check_image(self, image: Tensor) -> None:
        """Refuse an image that does not fit.

        Raises:
            ValueError: The shape is not ``(N, in_channels, *spatial)``, or an axis is no multiple
                of the divisor.
        """
        if image.dim() != self.spatial_dims + 2 or image.shape[1] != self.in_channels:
            raise ValueError(
                f"expected an image (N, {self.in_channels}, *spatial) with {self.spatial_dims} "
                f"spatial axes, not {tuple(image.shape)}"
            )
        if any(size % self.divisor for size in image.shape[2:]):
            raise ValueError(
                f"each spatial axis must be a multiple of {self.divisor}, the image's are "
                f"{tuple(image.shape[2:])}: pad or crop it, or take fewer levels"
            )

    def check_count(self, n: int) -> None:
        """Refuse a number of samples below one.

        Raises:
            ValueError: n is below 1.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, not {n}")

    def check_masks(self, image: Tensor, masks: Tensor) -> None:
        """Refuse an image or masks that do not fit.

        Labels out of range are not looked for on an accelerator, which would have to be waited for.

        Raises:
            TypeError: The masks are no integers.
            ValueError: Shapes do not fit, or a label is not below `out_channels`.
        """
        self.check_image(image)
        if masks.is_floating_point() or masks.is_complex() or masks.dtype == torch.bool:
            raise TypeError(f"masks must be integer labels, not {masks.dtype}")
        expected = (image.shape[0], *image.shape[2:])
        if tuple(masks.shape) != expected:
            raise ValueError(
                f"expected masks (N, *spatial) = {expected}, one for each image, not "
                f"{tuple(masks.shape)}"
            )
        if masks.device.type == "cpu" and masks.numel() and has_data(masks):
            low, high = masks.aminmax()
            if low < 0 or high >= self.out_channels:
                raise ValueError(
                    f"labels must be 0 to {self.out_channels - 1} (out_channels="
                    f"{self.out_channels}), the masks have {int(low)} to {int(high)}"
                )
