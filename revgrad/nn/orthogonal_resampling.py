"""Learnable invertible down- and upsampling by orthogonal matrices."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from revgrad.autograd.inventory import known
from revgrad.autograd.layout import dense, dense_format
from revgrad.autograd.protocol import Gradients, State
from revgrad.autograd.rewind import Rewind, Weight
from revgrad.errors import ReversibleError
from revgrad.fixed_point import FixedPoint, to_float
from revgrad.fixed_point.rotation import growth
from revgrad.fixed_point.tensor import on_integers
from revgrad.nn.layer import ReversibleLayer
from revgrad.nn.orthogonal import OrthogonalMatrices, block_transform
from revgrad.ops import (
    orthogonal_down,
    orthogonal_down_exact,
    orthogonal_up,
    orthogonal_up_exact,
    orthogonal_weight,
)

Stride = tuple[int, ...]


class _OrthogonalResampling(ReversibleLayer):
    """What both directions share.

    Args:
        channels: Channels of both streams together at the higher resolution.
        spatial_dims: Number of spatial axes, 1, 2 or 3.
        stride: Factor along each spatial axis; an int stands for all.
        method: How the matrices are made of free parameters, see `OrthogonalMatrices`.
        init: "haar", "pixel_shuffle", "random", or matrices (K, K) or (channels, K, K).
        matrices: The matrices of another layer, to share them.
    """

    def __init__(
        self,
        channels: int,
        spatial_dims: int,
        stride: int | Stride = 2,
        *,
        method: str = "exp",
        init: str | Tensor = "haar",
        matrices: OrthogonalMatrices | None = None,
    ) -> None:
        super().__init__()
        if spatial_dims not in (1, 2, 3):
            raise ValueError(f"spatial_dims must be 1, 2 or 3, not {spatial_dims!r}")
        self.channels = channels
        self.stride = (stride,) * spatial_dims if isinstance(stride, int) else tuple(stride)
        if len(self.stride) != spatial_dims or min(self.stride) < 1:
            raise ValueError(
                f"stride must be a positive number or {spatial_dims} of them, not {stride!r}"
            )
        self.block = math.prod(self.stride)
        if matrices is None:
            matrices = OrthogonalMatrices(block_transform(init, self.stride, channels), method)
        elif matrices.start.shape != (channels, self.block, self.block):
            raise ValueError(
                f"the shared matrices are {tuple(matrices.start.shape)}, but {channels} channels "
                f"and stride {self.stride} need ({channels}, {self.block}, {self.block})"
            )
        self.matrices = matrices

    def extra_repr(self) -> str:
        return f"channels={self.channels}, stride={self.stride}"

    def _down(self, q: Tensor, *streams: Tensor) -> State:
        parts = self._split(q, [x.shape[1] for x in streams])
        return tuple(_down(x, p, self.stride) for x, p in zip(streams, parts, strict=True))

    def _up(self, q: Tensor, *streams: Tensor) -> State:
        parts = self._split(q, [y.shape[1] // self.block for y in streams])
        return tuple(_up(y, p, self.stride) for y, p in zip(streams, parts, strict=True))

    def _split(self, q: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
        if sum(sizes) != self.channels:
            raise ReversibleError(
                f"made for {self.channels} channels at the higher resolution, but the streams have "
                f"{' + '.join(map(str, sizes))}"
            )
        return q.split(sizes)

    def _book(self, weight: Weight, large: State, small: State) -> None:
        """The gradient of the matrices, from streams on one side and gradients on the other."""
        if weight.needs_grad:
            pairs = zip(map(to_float, large), map(to_float, small), strict=True)
            weight.book(torch.cat([orthogonal_weight(x, y, self.stride) for x, y in pairs]))


@known
class OrthogonalDownsample(_OrthogonalResampling):
    """Turns each block of pixels of a channel into channels by a learnable orthogonal matrix.

    Orthogonal, hence its inverse is its transpose, its gradient takes the same way, and nothing is
    amplified (iUNet, Etmann, Ke and Schönlieb 2020). In exact arithmetic the matrices are applied
    by lifting, see `revgrad.fixed_point.rotation`.

    Args:
        channels: Channels of both input streams together.
        spatial_dims: Number of spatial axes, 1, 2 or 3.
        stride: Factor along each spatial axis; an int stands for all. K is their product.
        method: How the matrices are made of free parameters, see `OrthogonalMatrices`.
        init: "haar", "pixel_shuffle", "random", or matrices (K, K) or (channels, K, K).
        matrices: The `matrices` of another such layer, to share them.

    Shapes:
        Each stream from (N, C, ...) to (N, C * K, ... / stride).
    """

    exact = True
    volume_preserving = True

    def forward(self, x1: Tensor, x2: Tensor, *args: Any, **kwargs: Any) -> State:
        """Downsample each stream."""
        return self._down(self.matrices(), x1, x2)

    def inverse(self, y1: Tensor, y2: Tensor, *args: Any, **kwargs: Any) -> State:
        """Upsample each stream by the transposed matrices."""
        return self._up(self.matrices(), y1, y2)

    def backward_step(
        self, rewind: Rewind, outputs: State, grads: Gradients, *args: Any, **kwargs: Any
    ) -> tuple[State, Gradients]:
        """Invert the streams and their gradients alike."""
        weight = rewind.weight(self.matrices)
        q = weight.value
        filled = rewind.filled(outputs, grads)
        inputs = self._up(q, *outputs)
        del outputs  # not to be held while the gradients are resampled
        if filled is None:
            return inputs, (None,) * len(inputs)
        self._book(weight, inputs, filled)
        return inputs, self._up(q, *filled)

    def out_channels(self, channels: tuple[int, ...]) -> tuple[int, ...]:
        """K times as many."""
        return tuple(c * self.block for c in channels)


@known
class OrthogonalUpsample(_OrthogonalResampling):
    """Inverse direction of `OrthogonalDownsample`, with the same arguments.

    Shapes:
        Each stream from (N, C * K, ...) to (N, C, ... * stride); `channels` counts the C.
    """

    exact = True
    volume_preserving = True

    def forward(self, x1: Tensor, x2: Tensor, *args: Any, **kwargs: Any) -> State:
        """Upsample each stream."""
        return self._up(self.matrices(), x1, x2)

    def inverse(self, y1: Tensor, y2: Tensor, *args: Any, **kwargs: Any) -> State:
        """Downsample each stream by the transposed matrices."""
        return self._down(self.matrices(), y1, y2)

    def backward_step(
        self, rewind: Rewind, outputs: State, grads: Gradients, *args: Any, **kwargs: Any
    ) -> tuple[State, Gradients]:
        """Invert the streams and their gradients alike."""
        weight = rewind.weight(self.matrices)
        q = weight.value
        filled = rewind.filled(outputs, grads)
        inputs = self._down(q, *outputs)
        del outputs  # not to be held while the gradients are resampled
        if filled is None:
            return inputs, (None,) * len(inputs)
        self._book(weight, filled, inputs)
        return inputs, self._down(q, *filled)

    def out_channels(self, channels: tuple[int, ...]) -> tuple[int, ...]:
        """K times fewer."""
        return tuple(c // self.block for c in channels)


def _down(x: Tensor, q: Tensor, stride: Stride) -> Tensor:
    if isinstance(x, FixedPoint):
        down: Tensor = _ExactDown.apply(x, q, stride)
        return dense(down, dense_format(x))
    return dense(orthogonal_down(x, q, stride), dense_format(x))


def _up(y: Tensor, q: Tensor, stride: Stride) -> Tensor:
    if isinstance(y, FixedPoint):
        up: Tensor = _ExactUp.apply(y, q, stride)
        return dense(up, dense_format(y))
    return dense(orthogonal_up(y, q, stride), dense_format(y))


class _ExactDown(torch.autograd.Function):
    """`orthogonal_down` of integers by lifting; the derivative is that of the unrounded map."""

    @staticmethod
    def forward(ctx: Any, x: FixedPoint, q: Tensor, stride: Stride) -> Tensor:
        ctx.stride = stride
        ctx.save_for_backward(x, q)

        rotated = partial(orthogonal_down_exact, q=q, stride=stride)
        return on_integers(x, rotated, growth(q.shape[-1]))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, q = ctx.saved_tensors
        dq = None
        if ctx.needs_input_grad[1]:
            dq = orthogonal_weight(to_float(x), grad, ctx.stride).to(q.dtype)
        return orthogonal_up(grad, q, ctx.stride), dq, None


class _ExactUp(torch.autograd.Function):
    """`orthogonal_up` of integers: takes `_ExactDown` back to the bit."""

    @staticmethod
    def forward(ctx: Any, y: FixedPoint, q: Tensor, stride: Stride) -> Tensor:
        ctx.stride = stride
        ctx.save_for_backward(y, q)

        rotated = partial(orthogonal_up_exact, q=q, stride=stride)
        return on_integers(y, rotated, growth(q.shape[-1]))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, q = ctx.saved_tensors
        dq = None
        if ctx.needs_input_grad[1]:
            dq = orthogonal_weight(grad, to_float(y), ctx.stride).to(q.dtype)
        return orthogonal_down(grad, q, ctx.stride), dq, None
