"""Gaussian blur and smooth random fields, in two dimensions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def blur(plane: Tensor, sigma: float) -> Tensor:
    """Blur ``(rows, columns)`` floats by a Gaussian; what lies outside repeats the edge.

    Args:
        plane: any floats.
        sigma: standard deviation in pixels, positive.
    """
    radius = max(1, round(3 * sigma))
    offset = torch.arange(-radius, radius + 1, dtype=plane.dtype)
    kernel = torch.exp(-0.5 * (offset / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(plane[None, None], (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[None, None, :, None]), kernel[None, None, None])[0, 0]


def smooth_noise(shape: tuple[int, int], sigma: float, generator: torch.Generator) -> Tensor:
    """Draw a Gaussian random field ``(rows, columns)``, float32, mean 0 and standard deviation 1.

    Args:
        shape: rows and columns.
        sigma: of the blur that makes it smooth, in pixels.
        generator: draws it.
    """
    noise = blur(torch.randn(shape, generator=generator), sigma)
    return (noise - noise.mean()) / noise.std()
