"""Random changes of an image and one annotator's mask, for training, made with MONAI."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from revgrad.optional import optional_import

INTERPOLATIONS = ("linear", "nearest")


@dataclass(frozen=True)
class Augmentation:
    """Turns, crops, scales, bends and mirrors an image with its mask, and changes its contrast.

    ``augment(image, mask, seed=(seed, epoch, index))`` is a pure function: the same numbers give
    the same result, in whatever order and process, so a resumed training sees what it would have
    seen. Rotation and crop act in the plane of the last two axes, the rest on all axes. The
    spatial changes are one map, so that an image is interpolated once. Beyond its border an image
    goes on as at the border, and its mask too.

    Args:
        probability: that the image is rotated, cropped, scaled and bent at all.
        rotation: angle drawn from -rotation to rotation, in degrees.
        crop: a window of sides 1 - crop to 1 times the image's, anywhere within it, is resized to
            the image's size.
        scale: least and greatest magnification.
        elastic_magnitude: least and greatest factor of the random displacement, which is noise
            from -1 to 1 (a value a voxel and axis) smoothed by a Gaussian: Simard et al. 2003.
            Smoothing leaves less of it in 3D: take greater ones there.
        elastic_smoothness: least and greatest standard deviation of that Gaussian, in voxels.
        flip: axes that are mirrored with probability 1/2 each, such as -1 for left and right.
        gamma: least and greatest exponent of the contrast; mean and deviation of the image stay.
        gamma_probability: that the contrast is changed at all.
        mask_interpolation: ``"linear"``: each label's indicator is interpolated and the greatest
            wins, at four bytes a voxel and label; or ``"nearest"``.

    Raises:
        ValueError: A range is not one, or a name is unknown.
    """

    probability: float = 1.0
    rotation: float = 0.0
    crop: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    elastic_magnitude: tuple[float, float] = (0.0, 0.0)
    elastic_smoothness: tuple[float, float] = (25.0, 35.0)
    flip: tuple[int, ...] = ()
    gamma: tuple[float, float] = (1.0, 1.0)
    gamma_probability: float = 1.0
    mask_interpolation: str = "linear"

    def __post_init__(self) -> None:
        for name in ("scale", "elastic_smoothness", "gamma", "elastic_magnitude"):
            low, high = getattr(self, name)
            if not (0 <= low <= high < math.inf and (low > 0 or name == "elastic_magnitude")):
                raise ValueError(f"{name} must be a range of positive numbers, not {(low, high)}")
        for name in ("probability", "gamma_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, not {getattr(self, name)}")
        if not (0 <= self.crop < 1 and 0 <= self.rotation <= 180):
            raise ValueError(
                "crop must be from 0 to below 1 and rotation from 0 to 180 degrees, not "
                f"{self.crop} and {self.rotation}"
            )
        if self.mask_interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"mask_interpolation must be one of {INTERPOLATIONS}, not "
                f"{self.mask_interpolation!r}"
            )

    def __call__(
        self, image: Tensor, mask: Tensor, *, seed: int | Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Change an image and its mask alike.

        Args:
            image: ``(channels, *spatial)``, floating point, two or three spatial axes.
            mask: ``(*spatial)``, integer labels.
            seed: whole numbers, none negative, such as (seed, epoch, index).

        Returns:
            New tensors of the same shapes and dtypes; the given ones where nothing was drawn.

        Raises:
            ValueError: Shapes do not fit, or a flipped axis is missing.
            MissingExtraError: monai is not installed, and something is to be done with it.
        """
        self._check(image, mask)
        rng = np.random.default_rng(seed)
        grid = self._draw_grid(rng, tuple(mask.shape))
        if grid is not None:
            image, mask = _warp(image, grid), self._warp_mask(mask, grid)
        mirrored = [axis for axis in self.flip if rng.random() < 0.5]
        if mirrored:
            image, mask = image.flip(mirrored), mask.flip(mirrored)
        gamma = rng.uniform(*self.gamma)
        if rng.random() < self.gamma_probability and gamma != 1:
            image = _change_contrast(image, gamma)
        return image, mask

    def _check(self, image: Tensor, mask: Tensor) -> None:
        if mask.dim() not in (2, 3) or image.shape[1:] != mask.shape:
            raise ValueError(
                "expected an image (channels, *spatial) and a mask (*spatial) with two or three "
                f"spatial axes, not {tuple(image.shape)} and {tuple(mask.shape)}"
            )
        if any(not -mask.dim() <= axis < 0 for axis in self.flip):
            raise ValueError(
                f"flip counts axes from the end, -1 to {-mask.dim()}, and has {self.flip}"
            )

    def _draw_grid(self, rng: np.random.Generator, size: tuple[int, ...]) -> Tensor | None:
        """Where each voxel of the result comes from, see `_warp`; None for where it is."""
        # All are drawn, needed or not, so that one option does not change another's numbers.
        angle = math.radians(rng.uniform(-self.rotation, self.rotation))
        side = rng.uniform(1 - self.crop, 1)
        places = rng.uniform(-0.5, 0.5, 2)
        scale = rng.uniform(*self.scale)
        magnitude = rng.uniform(*self.elastic_magnitude)
        smoothness = rng.uniform(*self.elastic_smoothness)
        noise_seed = int(rng.integers(2**63))
        idle = (angle, side, scale, magnitude) == (0, 1, 1, 0)
        if rng.random() >= self.probability or idle:
            return None
        utils = optional_import("monai.transforms.utils", "data")
        grid = utils.create_grid(size, backend="torch", dtype=torch.float32)[:-1]
        # The window of the crop, in coordinates from the image's centre.
        grid[-2:] *= side
        for axis, place in zip((-2, -1), places.tolist(), strict=True):
            grid[axis] += place * (1 - side) * size[axis]
        if magnitude:
            grid += magnitude * _smooth_noise(size, smoothness, noise_seed)
        grid /= scale
        row, column = grid[-2].clone(), grid[-1].clone()
        grid[-2] = math.cos(angle) * row - math.sin(angle) * column
        grid[-1] = math.sin(angle) * row + math.cos(angle) * column
        return grid

    def _warp_mask(self, mask: Tensor, grid: Tensor) -> Tensor:
        """The label whose interpolated indicator is the greatest; of equals the smallest label."""
        labels, indices = mask.unique(return_inverse=True)
        if self.mask_interpolation == "nearest":
            return labels[_warp(indices[None].float(), grid, "nearest")[0].long()]
        shares = torch.stack([indices == i for i in range(len(labels))]).float()
        return labels[_warp(shares, grid).argmax(0)]


# A window's side of n - 30 to n pixels at n = 128.
_PHISEG_CROP = 30 / 128

PRESETS = {
    "none": Augmentation(),
    "flips": Augmentation(flip=(-1, -2)),
    "phiseg": Augmentation(probability=0.5, rotation=10.0, crop=_PHISEG_CROP),
    "probabilistic_unet": Augmentation(
        rotation=22.5,
        scale=(0.8, 1.2),
        elastic_magnitude=(0.0, 800.0),
        elastic_smoothness=(25.0, 35.0),
        flip=(-1,),
        gamma=(0.7, 1.5),
        gamma_probability=0.3,
    ),
}


def augmentation(name: str, **changes: Any) -> Augmentation:
    """One of the papers' augmentations, by name.

    - ``"none"`` changes nothing.
    - ``"flips"``: mirrored left and right, and up and down. In no paper; does without MONAI.
    - ``"phiseg"``: half of the images are rotated by up to 10 degrees and cropped by up to 30 of
      128 pixels. One coin decides on both. No mirroring: PHiSeg's code asks for it by a name that
      it never looks up; ``flip=(-1, -2)`` is what it meant.
    - ``"probabilistic_unet"``: mirrored left and right, elastic with magnitude 0 to 800 and
      smoothness 25 to 35 pixels, rotated by up to 22.5 degrees, scaled by 0.8 to 1.2, and gamma
      0.7 to 1.5 in three of ten images. Made for 256 x 512 pixels: smoothness is in pixels.

    Outside of the image both codes put zeros; here the border goes on, in image and mask alike.

    Args:
        name: one of these.
        changes: fields of `Augmentation` that shall differ.

    Raises:
        ValueError: There is no such augmentation.

    Source:
        baumgach/PHiSeg-code, data/batch_provider.py; SimonKohl/probabilistic_unet,
        training/prob_unet_config.py.
    """
    if name not in PRESETS:
        raise ValueError(f"augmentation must be one of {tuple(PRESETS)}, not {name!r}")
    return replace(PRESETS[name], **changes)


def _warp(values: Tensor, grid: Tensor, mode: str = "bilinear") -> Tensor:
    """Interpolate ``(channels, *spatial)`` at a grid ``(spatial_dims, *spatial)``.

    The grid is in voxels from the image's centre.
    """
    transforms = optional_import("monai.transforms", "data")
    resample = transforms.Resample(mode=mode, padding_mode="border", dtype=torch.float32)
    return resample(values, grid).as_tensor().to(values.dtype)


def _smooth_noise(size: tuple[int, ...], smoothness: float, seed: int) -> Tensor:
    """Uniform noise from -1 to 1, one value an axis and voxel, smoothed by a Gaussian."""
    generator = torch.Generator().manual_seed(seed)
    noise = 2 * torch.rand(len(size), *size, generator=generator) - 1
    # A matrix for each axis: convolving with hundreds of taps, as MONAI does, takes far longer.
    for axis, length in enumerate(size, start=1):
        smoothing = _gaussian_matrix(length, smoothness)
        noise = torch.tensordot(noise, smoothing, dims=([axis], [0])).movedim(-1, axis)
    return noise


def _gaussian_matrix(length: int, deviation: float) -> Tensor:
    """Convolution along an axis with a Gaussian cut off at four deviations; zeros outside."""
    reach = torch.arange(-int(4 * deviation + 0.5), int(4 * deviation + 0.5) + 1)
    total = torch.exp(-0.5 * (reach / deviation) ** 2).sum()
    distance = torch.arange(length)[:, None] - torch.arange(length)
    weights = torch.exp(-0.5 * (distance / deviation) ** 2) / total
    return torch.where(distance.abs() <= reach[-1], weights, 0.0)


def _change_contrast(image: Tensor, gamma: float) -> Tensor:
    transforms = optional_import("monai.transforms", "data")
    changed = transforms.AdjustContrast(gamma, retain_stats=True)(image)
    return changed.as_tensor().to(image.dtype)
