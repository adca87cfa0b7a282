"""Learnable orthogonal mixing of channels."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from revgrad.autograd.inventory import known
from revgrad.autograd.layout import dense, dense_format, is_shared
from revgrad.autograd.protocol import Gradients, State
from revgrad.autograd.rewind import Rewind
from revgrad.dataless import device_type
from revgrad.errors import ReversibleError
from revgrad.fixed_point import FixedPoint, to_float
from revgrad.fixed_point.block_lifting import BlockLifting
from revgrad.fixed_point.range_watch import current_watch
from revgrad.fixed_point.rotation import growth
from revgrad.nn.layer import ReversibleLayer
from revgrad.nn.orthogonal import OrthogonalMatrices, block_transform
from revgrad.ops.precision import full_precision

# Numbers that are mixed at a time: on a CPU they stay in the cache.
_PIECE = 2**18
_PIECE_ON_ACCELERATORS = 2**26


@known
class ChannelMixing(ReversibleLayer):
    """Multiplies the channels of both streams together by one learnable orthogonal matrix.

    An invertible 1x1 convolution (Glow, Kingma and Dhariwal 2018) whose inverse is its transpose
    (iUNet, Etmann, Ke and Schönlieb 2020). In exact arithmetic the matrix is applied by lifting,
    see `revgrad.fixed_point.block_lifting`, whose factors are made on the CPU.

    Args:
        channels: Channels of both streams together, C.
        method: How the matrix is made of free parameters, see `OrthogonalMatrices`.
        init: "identity", "random", or an orthogonal matrix (C, C).

    Shapes:
        Each stream keeps its shape.
    """

    exact = True
    volume_preserving = True

    def __init__(
        self, channels: int, *, method: str = "exp", init: str | Tensor = "identity"
    ) -> None:
        super().__init__()
        if isinstance(init, str) and init not in ("identity", "random"):
            raise ValueError(f"init must be a tensor, 'identity' or 'random', not {init!r}")
        start = "pixel_shuffle" if isinstance(init, str) and init == "identity" else init
        self.channels = channels
        self.matrices = OrthogonalMatrices(block_transform(start, (channels,), 1), method)

    def forward(self, x1: Tensor, x2: Tensor, *args: Any, **kwargs: Any) -> State:
        """Mix."""
        return self._mixed(self.matrices()[0], (x1, x2))

    def inverse(self, y1: Tensor, y2: Tensor, *args: Any, **kwargs: Any) -> State:
        """Mix by the transposed matrix."""
        return self._unmixed(self.matrices()[0], (y1, y2))

    def backward_step(
        self, rewind: Rewind, outputs: State, grads: Gradients, *args: Any, **kwargs: Any
    ) -> tuple[State, Gradients]:
        """Invert the streams and their gradients alike."""
        weight = rewind.weight(self.matrices)
        matrix = weight.value[0]
        in_place = not rewind.differentiable and not any(map(is_shared, outputs))
        filled = rewind.filled(outputs, grads)
        inputs = self._unmixed(matrix, outputs, into=outputs if in_place else None)
        del outputs  # not to be held while the gradients are mixed
        if filled is None:
            return inputs, (None,) * len(inputs)
        if weight.needs_grad:
            weight.book(channel_outer(filled, tuple(map(to_float, inputs)), matrix.dtype)[None])
        return inputs, channel_product(matrix.mT, filled)

    def extra_repr(self) -> str:
        return f"channels={self.channels}"

    def _mixed(self, matrix: Tensor, streams: State) -> State:
        self._check(streams)
        if isinstance(streams[0], FixedPoint):
            mixed: State = _ExactMixing.apply(*streams, matrix, False)
            return mixed
        return channel_product(matrix, streams)

    def _unmixed(self, matrix: Tensor, streams: State, into: State | None = None) -> State:
        self._check(streams)
        if isinstance(streams[0], FixedPoint):
            unmixed: State = _ExactMixing.apply(*streams, matrix, True)
            return unmixed
        return channel_product(matrix.mT, streams, into)

    def _check(self, streams: State) -> None:
        sizes = [x.shape[1] for x in streams]
        if sum(sizes) != self.channels:
            raise ReversibleError(
                f"made for {self.channels} channels, but the streams have "
                f"{' + '.join(map(str, sizes))}"
            )


# --- floats -------------------------------------------------------------------------------------


def channel_product(matrix: Tensor, streams: State, into: State | None = None) -> State:
    """The matrix times the channels of both streams, in the format of each.

    Args:
        matrix: (C, C).
        streams: Floats, C channels together.
        into: Tensors to write to, which may be the streams; only where no gradient is recorded.
    """
    wide = _widest(matrix.dtype, *(x.dtype for x in streams))
    matrix = matrix.to(wide)
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        with full_precision(matrix.device):
            mixed = matrix @ torch.cat([x.reshape(_flat(x)) for x in streams], 1).to(wide)
        parts = mixed.split([x.shape[1] for x in streams], 1)
        shaped = (m.to(x.dtype).view(x.shape) for m, x in zip(parts, streams, strict=True))
        return tuple(dense(m, dense_format(x)) for m, x in zip(shaped, streams, strict=True))
    made = into or tuple(torch.empty_like(x, memory_format=dense_format(x)) for x in streams)
    targets = tuple(x.view(_flat(x)) for x in made)  # never a copy, which would be lost
    with full_precision(matrix.device):
        for source, target in zip(_pieces(streams), _pieces(targets), strict=True):
            _mix_piece(matrix, tuple(x.to(wide) for x in source), target)
    return made


def _mix_piece(matrix: Tensor, source: State, target: State) -> None:
    """The product for pieces (N, C, pixels), which may be the same."""
    (x1, x2), first = source, source[0].shape[1]
    # bmm, because which way matmul goes depends on whether the matrix requires a gradient.
    by_sample = matrix.detach().expand(x1.shape[0], -1, -1)
    of_first, of_second = by_sample[..., :first], by_sample[..., first:]
    if x1.stride(1) == 1:  # channels-last: what is computed lies in memory alike
        mixed = torch.bmm(x1.mT, of_first.mT).baddbmm_(x2.mT, of_second.mT).mT
    else:
        mixed = torch.bmm(of_first, x1).baddbmm_(of_second, x2)
    target[0].copy_(mixed[:, :first])
    target[1].copy_(mixed[:, first:])


def channel_outer(grads: State, inputs: State, dtype: torch.dtype) -> Tensor:
    """The gradient of the matrix: the sum over all pixels of gradient times input."""
    wide = _widest(dtype, *(x.dtype for x in (*grads, *inputs)))
    total: Any = 0
    with full_precision(inputs[0].device):
        for dy, x in zip(_pieces(grads), _pieces(inputs), strict=True):
            blocks = [[(d.to(wide) @ v.to(wide).mT).sum(0) for v in x] for d in dy]
            total = total + torch.cat([torch.cat(row, 1) for row in blocks])
    result: Tensor = total
    return result


def _pieces(streams: State) -> Iterator[State]:
    """Both streams, (N, C, pixels), a stretch of pixels at a time."""
    flat = [x.reshape(_flat(x)) for x in streams]
    size = _PIECE if device_type(flat[0]) == "cpu" else _PIECE_ON_ACCELERATORS
    numbers = sum(x.shape[0] * x.shape[1] for x in flat)
    length = max(1, size // max(1, numbers))
    yield from zip(*(x.split(length, 2) for x in flat), strict=True)


def _widest(*types: torch.dtype) -> torch.dtype:
    return functools.reduce(torch.promote_types, types)


def _flat(x: Tensor) -> tuple[int, int, int]:
    """The shape (N, C, pixels)."""
    return x.shape[0], x.shape[1], math.prod(x.shape[2:])


def _rows(piece: State) -> Tensor:
    """A piece as a matrix of its own, (C, N * pixels)."""
    joined = torch.cat(piece, 1)
    n, c, pixels = joined.shape
    return joined.transpose(0, 1).reshape(c, n * pixels)


def _put_rows(piece: State, rows: Tensor) -> None:
    """Write such a matrix to where a piece lies."""
    n, _, pixels = piece[0].shape
    parts = rows.view(rows.shape[0], n, pixels).split([x.shape[1] for x in piece])
    for target, part in zip(piece, parts, strict=True):
        target.copy_(part.transpose(0, 1))


# --- integers -----------------------------------------------------------------------------------


def _longest(streams: tuple[FixedPoint, ...]) -> Tensor:
    """A bound of what arises on the way: rotations keep the length of a pixel's channels.

    The first of three shears may add as much again as a right angle does: sqrt(2).
    """
    squares = sum(x.integers.float().square().sum(1) for x in streams)
    assert isinstance(squares, Tensor)
    largest = squares.amax() if squares.numel() else squares.new_zeros(())
    return 1.001 * math.sqrt(2) * largest.sqrt()


class _ExactMixing(torch.autograd.Function):
    """The product with integers by lifting; the derivative is that of the unrounded map."""

    @staticmethod
    def forward(ctx: Any, x1: FixedPoint, x2: FixedPoint, matrix: Tensor, undo: bool) -> State:
        ctx.undo = undo
        ctx.save_for_backward(x1, x2, matrix)
        streams = x1, x2
        lifting = BlockLifting.of(matrix, x1.grid.gradient_dtype)
        mix = lifting.undo_ if undo else lifting.apply_

        integers = torch.cat([x.integers for x in streams], 1)
        with full_precision(integers.device):
            for piece in _pieces((integers.view(_flat(integers)),)):
                _put_rows(piece, mix(_rows(piece)))
        watch, bound = current_watch(), None
        if watch is not None:
            inside = functools.partial(_longest, streams)
            bound = watch.of_stream(streams, integers, growth(matrix.shape[0]), inside)
        joined: Any = FixedPoint(integers, x1.grid, bound)
        parts = joined.split([x.shape[1] for x in streams], 1)
        return tuple(dense(part, dense_format(x)) for part, x in zip(parts, streams, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *streams, matrix = ctx.saved_tensors
        back = matrix if ctx.undo else matrix.mT
        weight = None
        if ctx.needs_input_grad[2]:
            weight = channel_outer(grads, tuple(map(to_float, streams)), matrix.dtype)
            weight = weight.to(matrix.dtype)
            weight = weight.mT if ctx.undo else weight
        return *channel_product(back, grads), weight, None
