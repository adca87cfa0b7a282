"""Orthogonal resampling: each block of pixels of a channel becomes as many channels, rotated.

Down- and upsampling by a learnable orthogonal matrix per channel, as in iUNets (Etmann, Ke and
Schönlieb 2020). The three operators here are each other's derivatives: down and up are linear
in the image and in the matrix, and `_weight` sums the outer products that the matrix's gradient
consists of. So every derivative, of any order, runs on the same kernels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from revgrad.ops import kernels

MAX_BLOCK = 64  # pixels of a block that the kernels take; csrc/kernels/orthogonal.h says the same

Stride = tuple[int, ...]


def orthogonal_down(x: Tensor, q: Tensor, stride: int | Stride) -> Tensor:
    """Turn each block of K pixels of a channel into K channels: `y[c * K + k] = Q[c, k] · block`.

    Pixels of a block count with the last axis as the fastest, so that the identity as Q gives
    `PixelShuffleDownsample`'s channel order.

    Args:
        x: The image, (N, C, ...) with 1 to 3 spatial axes that divide by `stride`.
        q: One matrix (K, K) for all channels, or (C, K, K), K being the product of `stride`. It
            need not be orthogonal; if it is, `orthogonal_up` is the inverse. Half-precision
            images take it in float32, whatever its type.
        stride: Pixels of a block along each spatial axis; an int stands for all axes.

    Returns:
        (N, C * K, ...), every spatial axis divided by its stride, in the memory format of `x`.

    Raises:
        ValueError: If shapes, types or devices do not fit together.
    """
    stride = _check(x, q, stride, large=True)
    q = q.to(_accumulator(x))
    if q.shape[-1] <= MAX_BLOCK and kernels.fit(x, q):
        down = _Down.apply if kernels.needs_function(x, q) else _Down.forward
        return down(x, q, stride)
    return orthogonal_down_reference(x, q, stride)


def orthogonal_up(y: Tensor, q: Tensor, stride: int | Stride) -> Tensor:
    """Transpose of `orthogonal_down`, and its inverse if `q` is orthogonal.

    Args:
        y: The small image, (N, C * K, ...).
        q: One matrix (K, K) for all channels, or (C, K, K).
        stride: Pixels of a block along each spatial axis; an int stands for all axes.

    Returns:
        (N, C, ...), every spatial axis times its stride, in the memory format of `y`.

    Raises:
        ValueError: If shapes, types or devices do not fit together.
    """
    stride = _check(y, q, stride, large=False)
    q = q.to(_accumulator(y))
    if q.shape[-1] <= MAX_BLOCK and kernels.fit(y, q):
        up = _Up.apply if kernels.needs_function(y, q) else _Up.forward
        return up(y, q, stride)
    return orthogonal_up_reference(y, q, stride)


def orthogonal_weight(x: Tensor, y: Tensor, stride: int | Stride, shared: bool = False) -> Tensor:
    """Gradient of the matrices of `orthogonal_down` at `x`, if `y` is that of its result.

    Args:
        x: The image, (N, C, ...).
        y: The small image, (N, C * K, ...).
        stride: Pixels of a block along each spatial axis; an int stands for all axes.
        shared: Whether one matrix serves all channels.

    Returns:
        (C, K, K), or (K, K) if `shared`; float32, or float64 for float64 images.
    """
    axes = x.dim() - 2
    stride = (stride,) * axes if isinstance(stride, int) else tuple(stride)
    wide = torch.promote_types(x.dtype, y.dtype)
    x, y = x.to(wide), y.to(wide)
    if math.prod(stride) <= MAX_BLOCK and kernels.fit(x, y):
        return _Weight.apply(x, y, stride, shared)
    return weight_reference(x, y, stride, shared)


def orthogonal_down_reference(x: Tensor, q: Tensor, stride: int | Stride) -> Tensor:
    """`orthogonal_down` in plain PyTorch: the tests' oracle, and what runs without kernels."""
    stride = _check(x, q, stride, large=True)
    wide = _accumulator(x)
    y = _from_blocks(_rotate(q.to(wide), to_blocks(x, stride).to(wide)))
    return formatted(y.to(x.dtype), x)


def orthogonal_up_reference(y: Tensor, q: Tensor, stride: int | Stride) -> Tensor:
    """`orthogonal_up` in plain PyTorch: the tests' oracle, and what runs without kernels."""
    stride = _check(y, q, stride, large=False)
    wide = _accumulator(y)
    n, c, *size = y.shape
    k = math.prod(stride)
    blocks = _rotate(q.to(wide).mT, y.to(wide).reshape(n, c // k, k, *size))
    return formatted(merge_blocks(blocks, stride).to(y.dtype), y)


def weight_reference(x: Tensor, y: Tensor, stride: Stride, shared: bool) -> Tensor:
    """Sum over batch and positions the outer products of y's channels with x's blocks.

    Returns:
        The gradient of Q, (C, K, K), or summed over the channels if `shared`, in float32 or
        float64.
    """
    wide = _accumulator(x)
    blocks = to_blocks(x, stride).to(wide).flatten(3)
    values = y.to(wide).reshape(*blocks.shape[:3], -1)
    return torch.einsum("nckp,ncjp->kj" if shared else "nckp,ncjp->ckj", values, blocks)


def to_blocks(x: Tensor, stride: Stride) -> Tensor:
    """(N, C, ...) to (N, C, K, ... / stride)."""
    n, c, *size = x.shape
    d = len(size)
    split = [part for s, t in zip(size, stride, strict=True) for part in (s // t, t)]
    inner, outer = range(3, 3 + 2 * d, 2), range(2, 2 + 2 * d, 2)
    moved = x.reshape(n, c, *split).permute(0, 1, *inner, *outer)
    small = [s // t for s, t in zip(size, stride, strict=True)]
    return moved.reshape(n, c, math.prod(stride), *small)


def merge_blocks(blocks: Tensor, stride: Stride) -> Tensor:
    """Inverse of `to_blocks`."""
    n, c, _, *size = blocks.shape
    d = len(size)
    split = blocks.reshape(n, c, *stride, *size)
    pairs = [axis for i in range(d) for axis in (2 + d + i, 2 + i)]
    large = [s * t for s, t in zip(size, stride, strict=True)]
    return split.permute(0, 1, *pairs).reshape(n, c, *large)


def _from_blocks(blocks: Tensor) -> Tensor:
    return blocks.flatten(1, 2)


def _rotate(q: Tensor, blocks: Tensor) -> Tensor:
    which = "kj,ncj...->nck..." if q.dim() == 2 else "ckj,ncj...->nck..."
    return torch.einsum(which, q, blocks)


def _accumulator(x: Tensor) -> torch.dtype:
    """The type that sums are formed in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _format(x: Tensor) -> torch.memory_format:
    """The memory format of a result: channels-last if `x` is that and nothing simpler."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    last = formats.get(x.dim())
    if last is not None and x.is_contiguous(memory_format=last) and not x.is_contiguous():
        return last
    return torch.contiguous_format


def is_channels_last(x: Tensor) -> bool:
    """Whether the kernels treat the image as channels-last."""
    return _format(x) is not torch.contiguous_format


def formatted(result: Tensor, x: Tensor) -> Tensor:
    """The result in the memory format of `x`."""
    return result.contiguous(memory_format=_format(x))


def _check(image: Tensor, q: Tensor, stride: int | Stride, large: bool) -> Stride:
    """Refuse what no rule covers; returns the stride as a tuple."""
    if not image.is_floating_point() or not q.is_floating_point():
        name = "x" if large else "y"
        raise ValueError(f"{name} and q must be floating, got {image.dtype} and {q.dtype}")
    return checked_stride(image, q, stride, large)


def checked_stride(image: Tensor, q: Tensor, stride: int | Stride, large: bool) -> Stride:
    """The stride as a tuple, if it goes with the shapes and devices of image and matrices.

    Args:
        image: The large image, or the small one.
        q: The matrices.
        stride: As the caller of an operator gave it.
        large: Which image it is.

    Raises:
        ValueError: If it does not.
    """
    name = "x" if large else "y"
    axes = image.dim() - 2
    if axes not in (1, 2, 3):
        raise ValueError(
            f"{name} must be (N, C, ...) with 1 to 3 spatial axes, got {_shape(image)}"
        )
    stride = (stride,) * axes if isinstance(stride, int) else tuple(stride)
    if len(stride) != axes or any(s < 1 for s in stride):
        raise ValueError(
            f"stride must name a positive number for each of the {axes} spatial axes, got {stride}"
        )
    if image.device != q.device:
        raise ValueError(f"{name} and q must share a device, got {image.device} and {q.device}")
    k = math.prod(stride)
    if large and any(size % s for size, s in zip(image.shape[2:], stride, strict=True)):
        raise ValueError(
            f"the spatial axes of x must divide by stride {stride}, got {_shape(image)}; pad or "
            f"crop x"
        )
    if not large and image.shape[1] % k:
        raise ValueError(
            f"the channels of y must divide by {k}, the product of stride {stride}, got "
            f"{_shape(image)}"
        )
    c = image.shape[1] if large else image.shape[1] // k
    if q.shape not in ((k, k), (c, k, k)):
        raise ValueError(f"q must be ({k}, {k}) or ({c}, {k}, {k}), got {_shape(q)}")
    return stride


def _shape(t: Tensor) -> str:
    return str(tuple(t.shape))


class _Down(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, q: Tensor, stride: Stride) -> Tensor:
        return kernels.raw().orthogonal_down(x, q, list(stride), is_channels_last(x))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, q, ctx.stride = inputs
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, q)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, q = ctx.saved_tensors
        dx = _Up.apply(grad, q, ctx.stride) if ctx.needs_input_grad[0] else None
        shared = q.dim() == 2
        dq = _Weight.apply(x, grad, ctx.stride, shared) if ctx.needs_input_grad[1] else None
        return dx, dq, None

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor, q: Tensor, stride: Stride) -> tuple[Tensor, int]:
        return _vmap_rotation(_Down, info.batch_size, dims, x, q, stride, 1)


class _Up(torch.autograd.Function):
    @staticmethod
    def forward(y: Tensor, q: Tensor, stride: Stride) -> Tensor:
        return kernels.raw().orthogonal_up(y, q, list(stride), is_channels_last(y))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        y, q, ctx.stride = inputs
        ctx.save_for_backward(y if ctx.needs_input_grad[1] else None, q)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, q = ctx.saved_tensors
        dy = _Down.apply(grad, q, ctx.stride) if ctx.needs_input_grad[0] else None
        shared = q.dim() == 2
        dq = _Weight.apply(grad, y, ctx.stride, shared) if ctx.needs_input_grad[1] else None
        return dy, dq, None

    @staticmethod
    def vmap(info: Any, dims: Any, y: Tensor, q: Tensor, stride: Stride) -> tuple[Tensor, int]:
        return _vmap_rotation(_Up, info.batch_size, dims, y, q, stride, math.prod(stride))


class _Weight(torch.autograd.Function):
    """`weight_reference` on the kernels."""

    @staticmethod
    def forward(x: Tensor, y: Tensor, stride: Stride, shared: bool) -> Tensor:
        return kernels.raw().orthogonal_weight(x, y, list(stride), shared, is_channels_last(x))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, y, ctx.stride, ctx.shared = inputs
        ctx.save_for_backward(x, y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        dx = _Up.apply(y, grad, ctx.stride) if ctx.needs_input_grad[0] else None
        dy = _Down.apply(x, grad, ctx.stride) if ctx.needs_input_grad[1] else None
        return dx, dy, None, None

    @staticmethod
    def vmap(
        info: Any, dims: Any, x: Tensor, y: Tensor, stride: Stride, shared: bool
    ) -> tuple[Tensor, int]:
        """The samples become channels, each with its own matrix."""
        size = info.batch_size
        x, y = (_batched(t, d, size, 1).flatten(1, 2) for t, d in zip((x, y), dims, strict=False))
        grad = _Weight.apply(x, y, stride, False).unflatten(0, (size, -1))
        return (grad.sum(1) if shared else grad), 0


def _batched(t: Tensor, dim: int | None, size: int, to: int) -> Tensor:
    """Put vmap's axis at `to`, making one if there is none."""
    if dim is not None:
        return t.movedim(dim, to)
    return t.unsqueeze(to).expand(*t.shape[:to], size, *t.shape[to:])


def _vmap_rotation(
    function: Any, size: int, dims: Any, image: Tensor, q: Tensor, stride: Stride, k: int
) -> tuple[Tensor, int]:
    """Samples join the batch; with a matrix for each, the channels. `k` channels share a matrix."""
    if dims[1] is None:
        joined = _batched(image, dims[0], size, 0).flatten(0, 1)
        return function.apply(joined, q, stride).unflatten(0, (size, -1)), 0
    image = _batched(image, dims[0], size, 1)
    q = q.movedim(dims[1], 0)
    if q.dim() == 3:
        q = q.unsqueeze(1).expand(size, image.shape[2] // k, *q.shape[1:])
    result = function.apply(image.flatten(1, 2), q.flatten(0, 1), stride)
    return result.unflatten(1, (size, -1)), 1


def _like(t: Tensor, shape: list[Any], channels_last: bool) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    form = formats[t.dim()] if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=t.dtype, device=t.device, memory_format=form)


@kernels.shape_rule("orthogonal_down")
def down_shape(x: Tensor, q: Tensor, stride: list[int], channels_last: bool) -> Tensor:
    """What `orthogonal_down` returns, without data."""
    size = [s // t for s, t in zip(x.shape[2:], stride, strict=True)]
    return _like(x, [x.shape[0], x.shape[1] * math.prod(stride), *size], channels_last)


@kernels.shape_rule("orthogonal_up")
def up_shape(y: Tensor, q: Tensor, stride: list[int], channels_last: bool) -> Tensor:
    """What `orthogonal_up` returns, without data."""
    size = [s * t for s, t in zip(y.shape[2:], stride, strict=True)]
    return _like(y, [y.shape[0], y.shape[1] // math.prod(stride), *size], channels_last)


@kernels.shape_rule("orthogonal_weight")
def _weight_shape(
    x: Tensor, y: Tensor, stride: list[int], shared: bool, channels_last: bool
) -> Tensor:
    k = math.prod(stride)
    return x.new_empty([k, k] if shared else [x.shape[1], k, k], dtype=_accumulator(x))
