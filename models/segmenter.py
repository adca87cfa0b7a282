"""What every segmentation network of this package can be asked for."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from revgrad.dataless import has_data
from revgrad.models.blocks import Named, split_name
from revgrad.models.gaussian import DiagonalGaussian
from revgrad.models.mixture import Distribution
from revgrad.nn import NormAct, ReversibleSequence


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
        norm: of the units on the deepest level, where an image has its size over the divisor; None
            if there is none, or nobody knows.

    Attributes:
        most_samples: how many samples can be drawn at most, None for any number.
        kl_factor: what the weights of KL divergences in the loss are multiplied with; 1 but in the
            first steps of a training that warms up.
    """

    most_samples: int | None = None
    deepest_norm: Named | None = None

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        divisor: int = 1,
        norm: Named | None = None,
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
        self.deepest_norm = norm
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
            TypeError: The image is no tensor, or of a type that the weights are not of.
            ValueError: The shape is not ``(N, in_channels, *spatial)``, or an axis is no multiple
                of the divisor.
        """
        _refuse_other_than_tensors("an image", image)
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
        self._check_dtype(image)

    def _check_dtype(self, image: Tensor) -> None:
        """Refuse integers and doubles, as arrays become tensors, where the weights are others.

        Narrower floats pass: autocast and FSDP bring them and the weights together.
        """
        if image.is_floating_point() and image.dtype != torch.float64:
            return
        weight = next(self.parameters(), None)
        if weight is not None and all(p.dtype != image.dtype for p in self.parameters()):
            raise TypeError(
                f"the image is {image.dtype} and the network's weights are {weight.dtype}: take "
                f"image.to({weight.dtype})"
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
            TypeError: The image is refused by `check_image`, or the masks are no integers.
            ValueError: Shapes do not fit, a label is not below `out_channels`, or in training a
                norm would see one number a channel.
        """
        self.check_image(image)
        self._check_variance(image)
        _refuse_other_than_tensors("masks", masks)
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

    # Not in `check_image`: a network in training may be shown one image to see whether it fits.
    def _check_variance(self, image: Tensor) -> None:
        """Refuse images so small that in training a norm would see one number a channel."""
        norm = None if self.deepest_norm is None else split_name(self.deepest_norm)[0]
        if not self.training or norm not in ("batch", "instance"):
            return
        pixels = math.prod([size // self.divisor for size in image.shape[2:]])
        if pixels * (len(image) if norm == "batch" else 1) == 1 and self._has_norm_of_its_own():
            batch = " or more than one in a batch," if norm == "batch" else ""
            raise ValueError(
                f"an image of {tuple(image.shape[2:])} has one pixel on the deepest level, over "
                f"which {norm} norm has no variance: take larger images,{batch} fewer levels or "
                "another norm"
            )

    def _has_norm_of_its_own(self) -> bool:
        """Whether some norm is neither frozen nor taken over the images of other processes too."""
        norms = (m for m in self.modules() if isinstance(m, NormAct | _NormBase) and m.training)
        return any(not isinstance(norm, nn.SyncBatchNorm) for norm in norms)


def _refuse_other_than_tensors(expected: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"expected {expected} as a torch.Tensor, not {type(value).__name__}; torch.from_numpy "
            "makes one of an array"
        )
