"""Orthogonal resampling of integers: the block transform by lifting, undone to the bit.

Each matrix is a product of signs and plane rotations, each rotation three shears with rounded
products (`revgrad.fixed_point.rotation`). A kernel takes a block of pixels through all of them at
once, with the same bits as the reference. Integers have no derivative: whoever gives them a meaning
gives them that as well (`revgrad.nn.orthogonal_resampling`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from revgrad.fixed_point.rotation import Lifting
from revgrad.ops import kernels
from revgrad.ops.orthogonal import (
    MAX_BLOCK,
    Stride,
    checked_stride,
    down_shape,
    formatted,
    is_channels_last,
    merge_blocks,
    to_blocks,
    up_shape,
)


def orthogonal_down_exact(x: Tensor, q: Tensor, stride: int | Stride) -> Tensor:
    """`orthogonal_down` of integers, up to rounding; `orthogonal_up_exact` takes it back.

    Args:
        x: The image, (N, C, ...), int32. Sums that leave the range wrap around, which can still be
            taken back.
        q: Orthogonal matrices, (C, K, K), K being the product of `stride`.
        stride: Pixels of a block along each spatial axis; an int stands for all axes.

    Returns:
        (N, C * K, ...), int32, every spatial axis divided by its stride, in the memory format of
        `x`; the same bits on every CPU.

    Raises:
        ValueError: If shapes, types or devices do not fit together.
    """
    stride = _check(x, q, stride, large=True)
    lifting = Lifting.of(q)
    if _fit(x, q):
        down = kernels.raw().orthogonal_down_exact
        return down(x, lifting.packed(), list(stride), is_channels_last(x))
    return formatted(lifting.apply(to_blocks(x, stride)).flatten(1, 2), x)


def orthogonal_up_exact(y: Tensor, q: Tensor, stride: int | Stride) -> Tensor:
    """Take `orthogonal_down_exact` back, to the bit.

    Args:
        y: The small image, (N, C * K, ...), int32.
        q: Orthogonal matrices, (C, K, K).
        stride: Pixels of a block along each spatial axis; an int stands for all axes.

    Returns:
        (N, C, ...), int32, every spatial axis times its stride, in the memory format of `y`.

    Raises:
        ValueError: If shapes, types or devices do not fit together.
    """
    stride = _check(y, q, stride, large=False)
    lifting = Lifting.of(q)
    if _fit(y, q):
        up = kernels.raw().orthogonal_up_exact
        return up(y, lifting.packed(), list(stride), is_channels_last(y))
    blocks = y.unflatten(1, (q.shape[0], q.shape[-1]))
    return formatted(merge_blocks(lifting.undo(blocks), stride), y)


def _fit(image: Tensor, q: Tensor) -> bool:
    """Whether a kernel runs; factors are float64 whatever the type of q."""
    plain = kernels.is_plain(image, (torch.int32,))
    return plain and q.shape[-1] <= MAX_BLOCK and kernels.fit(q)


def _check(image: Tensor, q: Tensor, stride: int | Stride, large: bool) -> Stride:
    """Refuse what no rule covers; returns the stride as a tuple."""
    name = "x" if large else "y"
    if image.dtype != torch.int32 or not q.is_floating_point():
        raise ValueError(
            f"{name} must be int32 and q floating, got {image.dtype} and {q.dtype}; floating "
            "images go to orthogonal_down and orthogonal_up"
        )
    if q.dim() != 3:
        raise ValueError(f"q must be (C, K, K), a matrix for each channel, got {tuple(q.shape)}")
    return checked_stride(image, q, stride, large)


kernels.shape_rule("orthogonal_down_exact")(down_shape)
kernels.shape_rule("orthogonal_up_exact")(up_shape)
