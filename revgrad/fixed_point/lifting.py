"""Orthonormal transforms of integers that can be taken back to the bit.

A transform of integers by sums, of which each adds to one number a rounded function of the others,
is undone by taking the sums back in reverse (lifting: Sweldens 1996; to integers: Calderbank et al.
1998). All functions here take and give int32 and are their own inverse.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def haar(integers: Tensor, spatial_dims: int, *, inverse: bool) -> Tensor:
    """Orthonormal Hadamard transform of each group of 2**spatial_dims channels.

    Rounded to integers: by less than one step in one and two dimensions, two in three. The results
    are less than `HAAR_GROWTH[spatial_dims]` times as large as the largest input.

    Args:
        integers: (N, C * 2**spatial_dims, ...), the last spatial axis as the fastest in a group.
        spatial_dims: 1, 2 or 3.
        inverse: Undo it. The same map but for the order of rounding.
    """
    n, c, *size = integers.shape
    groups, half = c // 2**spatial_dims, spatial_dims % 2
    fours = (n, groups, 4, 1 + half, *size)
    pairs = (n, c // 2, 2, *size)
    if spatial_dims == 1:
        return hadamard2(integers.reshape(pairs)).reshape(integers.shape)
    if spatial_dims == 2:
        return hadamard4(integers.reshape(fours)).reshape(integers.shape)
    if inverse:
        pairwise = hadamard2(integers.reshape(pairs))
        return hadamard4(pairwise.reshape(fours)).reshape(integers.shape)
    fourwise = hadamard4(integers.reshape(fours))
    return hadamard2(fourwise.reshape(pairs)).reshape(integers.shape)


# Bounds on the size of results and of what arises on the way: 2**(d / 2), rounded up.
HAAR_GROWTH = {1: 1.5, 2: 2.0, 3: 3.0}


def hadamard4(x: Tensor) -> Tensor:
    """(a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d) / 2 along axis 2 of size 4.

    With m = (b + c + d - a) / 2 this is (a + m, c - m, b - m, d - m): a reflection, exact but for
    the rounding of m. Rounding m down is undone by the same map, because it makes m into -m.
    """
    a, b, c, d = x.unbind(2)
    m = _halved_sum(b + c, d - a)
    return torch.stack((a + m, c - m, b - m, d - m), 2)


def _halved_sum(x: Tensor, y: Tensor) -> Tensor:
    """(x + y) / 2, rounded down, without the sum, which may not fit into 32 bits."""
    return (x >> 1) + (y >> 1) + (x & y & 1)


def hadamard2(x: Tensor) -> Tensor:
    """(a + b, a - b) / sqrt(2) along axis 2 of size 2.

    A rotation by 45 degrees as three shears, and a change of sign.
    """
    a, b = x.unbind(2)
    a = a + scaled(b, _SHEAR)
    b = b - scaled(a, _SINE)
    return torch.stack((a + scaled(b, _SHEAR), -b), 2)


_SINE = math.sqrt(0.5)
_SHEAR = math.tan(math.pi / 8)


def scaled(x: Tensor, by: float | Tensor) -> Tensor:
    """The rounded product, the same on every machine: float64 holds 32-bit integers exactly."""
    return (x.double() * by).round_().to(torch.int32)
