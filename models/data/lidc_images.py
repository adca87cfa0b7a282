"""Synthetic lung CT for the LIDC masks: a nodule blended into the lung of a real volume.

The database's own images are not in this package. What stands in for them must not give the
answer away: an image made of the mean of the annotators' masks would show where they disagree,
and thresholding it would do for a model. So the nodule is one smoothed consensus shape, and its
edge is blurred by an amount that is drawn without looking at the masks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from revgrad.models.data.organs import ORGANS, load_organs
from revgrad.models.data.smooth import blur, smooth_noise

# A lung window; what lies outside is cut off.
WINDOW = (-1000.0, 400.0)
# Hounsfield units of a nodule from the texture rating 1 (ground glass) to 5 (solid).
GROUND_GLASS, SOLID = -500.0, 30.0
# Millimetres from the lung's edge to the middle of any nodule: nearer, a small one is not seen.
DEPTH = 9.0
# A large nodule has at least as many voxels to stand at, even if it touches the wall there.
PLACES = 250


@dataclass(frozen=True)
class Lungs:
    """Where nodules can stand in the sample volume.

    Attributes:
        hounsfield: ``(slices, rows, columns)`` float32.
        places: ``(voxels, 3)``, slice, row and column of all lung voxels, the deepest first.
        depths: ``(voxels,)``, of each the distance from the lung's edge in millimetres, descending.
        spacing: of rows and columns in millimetres.
    """

    hounsfield: Tensor
    places: Tensor
    depths: Tensor
    spacing: float


def load_lungs() -> Lungs:
    """Find the lungs in the sample volume, and how deep each voxel lies in them."""
    hounsfield, places, depths, spacing = _lung_arrays()
    as_tensor = torch.from_numpy
    return Lungs(as_tensor(hounsfield), as_tensor(places), as_tensor(depths), spacing)


@lru_cache(maxsize=1)
def _lung_arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """What `load_lungs` gives. Kept as arrays: tensors would count in every measured memory."""
    volume = load_organs()
    left = (volume.organs() == 1 + list(ORGANS).index("lungs")).float()
    depth = torch.zeros_like(left)
    while left.any():
        depth += left
        left = -F.max_pool2d(-left[:, None], 3, stride=1, padding=1)[:, 0]
    depths = depth[depth > 0] * volume.spacing[1]
    order = depths.argsort(descending=True, stable=True)
    hounsfield = volume.hounsfield.float()
    return (
        hounsfield.numpy(),
        depth.nonzero()[order].numpy(),
        depths[order].numpy(),
        volume.spacing[1],
    )


def consensus_shape(annotators: Tensor) -> Tensor:
    """One smoothed shape that stands for all annotators.

    Args:
        annotators: ``(annotators, rows, columns)``, nonzero inside.

    Returns:
        ``(rows, columns)`` float32, 0 or 1.
    """
    mean = blur(annotators.ne(0).float().mean(0), 1.0)
    # Half of the peak and not half of all: a nodule that one of four outlined is still there.
    return (mean > 0.5 * mean.max()).float()


def lidc_image(
    annotators: Tensor, *, spacing: float, texture: float, generator: torch.Generator
) -> Tensor:
    """Draw a synthetic CT image of a nodule.

    ``background (1 - s) + (nodule + its texture) s + noise``, with s the blurred consensus shape.

    Args:
        annotators: ``(annotators, rows, columns)``, square.
        spacing: of the pixels in millimetres.
        texture: the radiologists' rating, 1 (ground glass) to 5 (solid).
        generator: draws everything; the same state gives the same image.

    Returns:
        ``(1, rows, columns)`` float32 in [-0.5, 0.5], which is -1000 to 400 HU.
    """
    shape = consensus_shape(annotators)
    size = (shape.shape[0], shape.shape[1])
    radius = math.sqrt(float(shape.sum()) / math.pi) * spacing
    background = _lung_patch(size, spacing, radius, generator)
    edge, hounsfield, grain, noise = torch.rand(4, generator=generator).tolist()
    s = blur(shape, 0.7 + 1.5 * edge)
    nodule = GROUND_GLASS + (texture - 1) / 4 * (SOLID - GROUND_GLASS) + 160 * (hounsfield - 0.5)
    nodule = nodule + (15 + 45 * grain) * smooth_noise(size, 1.5, generator)
    image = background * (1 - s) + nodule * s
    image += (15 + 30 * noise) * smooth_noise(size, 0.6, generator)
    low, high = WINDOW
    return ((image - low) / (high - low)).clamp(0, 1)[None] - 0.5


def _lung_patch(
    size: tuple[int, int], spacing: float, radius: float, generator: torch.Generator
) -> Tensor:
    """Cut ``size`` pixels around a random place in the lungs that has room for the nodule."""
    lungs = load_lungs()
    deep = max(PLACES, int((lungs.depths >= max(DEPTH, 0.8 * radius)).sum()))
    place, turn, flip, between = torch.rand(4, generator=generator).tolist()
    slice_, row, column = lungs.places[int(place * deep)].tolist()
    above = min(slice_ + 1, len(lungs.hounsfield) - 1)
    plane = torch.lerp(lungs.hounsfield[slice_], lungs.hounsfield[above], 0.5 * between)

    step = spacing / lungs.spacing
    sine, cosine = math.sin(2 * math.pi * turn) * step, math.cos(2 * math.pi * turn) * step
    y = torch.arange(size[0])[:, None] - (size[0] - 1) / 2
    x = (torch.arange(size[1]) - (size[1] - 1) / 2) * (1 if flip < 0.5 else -1)
    rows, columns = row + cosine * y + sine * x, column - sine * y + cosine * x
    height, width = plane.shape
    grid = torch.stack([2 * columns / (width - 1) - 1, 2 * rows / (height - 1) - 1], -1)
    patch: Tensor = F.grid_sample(
        plane[None, None], grid[None], mode="bicubic", padding_mode="border", align_corners=True
    )
    return patch[0, 0]
