"""Memory layout of streams: dense, and in one memory format from the entrance to the end.

The bits of a convolution depend on strides, so the two evaluations of a sub-network must see the
same ones; and dense tensors are what kernels are fast on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from revgrad.fixed_point import FixedPoint

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def dense_format(tensor: Tensor) -> torch.memory_format:
    """The memory format that a tensor is in, or (for a part of one) that it is a part of."""
    last = _CHANNELS_LAST.get(tensor.dim())
    if last is not None and not tensor.is_contiguous() and tensor.stride(1) == 1:
        return last
    return torch.contiguous_format


def dense(tensor: Tensor, memory_format: torch.memory_format, *, copy: bool = False) -> Tensor:
    """The tensor in the given format; a new one if `copy` or if it isn't dense in that format."""
    if copy:
        return tensor.clone(memory_format=memory_format)
    made = tensor.contiguous(memory_format=memory_format)
    if made is tensor and made.dim() > 1 and made.shape[0] == 1 and made.is_contiguous():
        # A part of a batch of one is dense, but has the batch's stride, unlike what is computed
        # back: each time it would have to be given it.
        return made.squeeze(0).unsqueeze(0)
    return made


def split_dense(x: Tensor, sizes: Sequence[int], dim: int, *, copy: bool = False) -> list[Tensor]:
    """Split a tensor into parts of the given sizes, each dense in the format of the whole."""
    memory_format = dense_format(x)
    return [dense(part, memory_format, copy=copy) for part in x.split(list(sizes), dim)]


def laid_out(tensor: Tensor, strides: Sequence[int], *, copy: bool = False) -> Tensor:
    """The tensor with exactly these strides; in new memory if `copy` or if it has others.

    Dense tensors of one format may still differ in the strides of axes of size 1, which is enough
    for a convolution to take another way. Strides of 0 (an expanded tensor) can't be written into
    and are left as they are.
    """
    if 0 in strides:
        return tensor.clone() if copy else tensor
    if not copy and tensor.stride() == tuple(strides):
        return tensor
    axes = zip(tensor.shape, tensor.stride(), strides, strict=True)
    if not copy and all(size == 1 or old == new for size, old, new in axes):
        return tensor.as_strided(tensor.shape, tuple(strides))
    if isinstance(tensor, FixedPoint):
        fixed: Tensor = _FixedLaidOut.apply(tensor, tuple(strides))
        return fixed
    return tensor.new_empty_strided(tensor.shape, tuple(strides)).copy_(tensor)


class _FixedLaidOut(torch.autograd.Function):
    """Fixed-point numbers in new memory with the given strides."""

    @staticmethod
    def forward(ctx: Any, x: FixedPoint, strides: tuple[int, ...]) -> Tensor:
        integers = x.integers.new_empty_strided(x.shape, strides).copy_(x.integers)
        return FixedPoint(integers, x.grid, x.bound)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, None


def gradient_strides(stream: Tensor, contiguous: bool) -> tuple[int, ...]:
    """The strides in which a stream's gradient is handed to sub-networks.

    Those of the stream, but contiguous where the batch is of size 1 and a sub-network might take
    any gradient of such a batch for a contiguous one, see `may_misread_gradients`.
    """
    if contiguous and stream.dim() > 2 and stream.shape[0] == 1:
        return _contiguous_strides(stream.shape)
    return stream.stride()


def _contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    sizes = [max(size, 1) for size in shape]
    return tuple(math.prod(sizes[axis + 1 :]) for axis in range(len(sizes)))


def alias(tensor: Tensor) -> Tensor:
    """Another tensor on the same memory, with the same strides (`view_as` may choose others)."""
    if isinstance(tensor, FixedPoint) and not torch.is_grad_enabled():
        return tensor.same()
    return torch.ops.aten.alias(tensor)


def memory_of(tensor: Tensor) -> Tensor:
    """The tensor that holds the numbers: of fixed-point ones, their integers."""
    return tensor.integers if isinstance(tensor, FixedPoint) else tensor


def is_shared(tensor: Tensor) -> bool:
    """Whether another tensor lives on the same memory, so that writing into it would be seen."""
    return _uses(memory_of(tensor)) > _USES_OF_ONE


def _uses(tensor: Tensor) -> int:
    uses: int = torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)
    return uses


_USES_OF_ONE = _uses(torch.empty(1))
