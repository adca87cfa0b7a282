"""Fixed invertible down- and upsampling: pixel shuffle and Haar wavelets."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from revgrad.autograd.inventory import known
from revgrad.autograd.layout import dense, dense_format
from revgrad.autograd.protocol import State
from revgrad.errors import ReversibleError
from revgrad.fixed_point import FixedPoint, lifting
from revgrad.fixed_point.tensor import linear
from revgrad.nn.layer import IsometricLayer


class _Resampling(IsometricLayer):
    """Applies the same resampling of factor 2 per axis to each of the two streams.

    Args:
        spatial_dims: Number of spatial axes, 1, 2 or 3.
    """

    def __init__(self, spatial_dims: int) -> None:
        super().__init__()
        if spatial_dims not in (1, 2, 3):
            raise ValueError(f"spatial_dims must be 1, 2 or 3, not {spatial_dims!r}")
        self.spatial_dims = spatial_dims

    def down(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def up(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"spatial_dims={self.spatial_dims}"


class _Downsample(_Resampling):
    exact = True

    def forward(self, x1: Tensor, x2: Tensor, *args: Any, **kwargs: Any) -> State:
        """Halve every spatial axis: (N, C, ...) to (N, C * 2**spatial_dims, ...), twice."""
        return _alike(self.down, x1), _alike(self.down, x2)

    def inverse(self, y1: Tensor, y2: Tensor, *args: Any, **kwargs: Any) -> State:
        """Double every spatial axis again."""
        return _alike(self.up, y1), _alike(self.up, y2)

    def out_channels(self, channels: tuple[int, ...]) -> tuple[int, ...]:
        """2**spatial_dims times as many."""
        return tuple(c * 2**self.spatial_dims for c in channels)


class _Upsample(_Resampling):
    exact = True

    def forward(self, x1: Tensor, x2: Tensor, *args: Any, **kwargs: Any) -> State:
        """Double every spatial axis: (N, C * 2**spatial_dims, ...) to (N, C, ...), twice."""
        return _alike(self.up, x1), _alike(self.up, x2)

    def inverse(self, y1: Tensor, y2: Tensor, *args: Any, **kwargs: Any) -> State:
        """Halve every spatial axis again."""
        return _alike(self.down, y1), _alike(self.down, y2)

    def out_channels(self, channels: tuple[int, ...]) -> tuple[int, ...]:
        """2**spatial_dims times fewer."""
        return tuple(c // 2**self.spatial_dims for c in channels)


class _PixelShuffle(_Resampling):
    """Channel `c * 2**d + k` of the small image holds position `k` of each block of channel `c`.

    In two dimensions that is the order of `torch.nn.functional.pixel_unshuffle`.
    """

    def down(self, x: Tensor) -> Tensor:
        return blocks_to_channels(x, self.spatial_dims)

    def up(self, x: Tensor) -> Tensor:
        return channels_to_blocks(x, self.spatial_dims)


class _Haar(_Resampling):
    """Orthonormal Haar transform: along each axis the pair (a, b) becomes (a + b, a - b) / sqrt(2).

    Channel `c * 2**d` holds the scaled average of each block of channel `c`, the next ones its
    differences, with the last axis as the fastest.
    """

    def down(self, x: Tensor) -> Tensor:
        return _haar(blocks_to_channels(x, self.spatial_dims), self.spatial_dims, inverse=False)

    def up(self, x: Tensor) -> Tensor:
        return channels_to_blocks(_haar(x, self.spatial_dims, inverse=True), self.spatial_dims)


@known
class PixelShuffleDownsample(_Downsample, _PixelShuffle):
    """Moves each block of 2 per axis into the channels; the spatial axes must be even.

    Shapes:
        Each stream from (N, C, ...) to (N, C * 2**spatial_dims, ... / 2). Channel order as in
        `torch.nn.PixelUnshuffle` (Shi et al. 2016; in reversible networks i-RevNet, Jacobsen et
        al. 2018).
    """


@known
class PixelShuffleUpsample(_Upsample, _PixelShuffle):
    """Inverse of `PixelShuffleDownsample`; the channels must divide by 2**spatial_dims."""


@known
class HaarDownsample(_Downsample, _Haar):
    """Orthonormal Haar wavelet transform of one level; the spatial axes must be even.

    Shapes:
        Each stream from (N, C, ...) to (N, C * 2**spatial_dims, ... / 2). Of the new channels of
        a channel the first is its low-pass band (average times 2**(spatial_dims / 2)).
    """


@known
class HaarUpsample(_Upsample, _Haar):
    """Inverse of `HaarDownsample`; the channels must divide by 2**spatial_dims."""


def blocks_to_channels(x: Tensor, spatial_dims: int) -> Tensor:
    """Move blocks of 2 per axis into the channels: (N, C, ...) to (N, C * 2**d, ... / 2)."""
    _check_dims(x, spatial_dims)
    n, c, *size = x.shape
    if any(s % 2 for s in size):
        raise ReversibleError(
            f"downsampling needs even spatial axes, but the stream has {tuple(size)}; pad or crop "
            f"the input so that every axis divides by 2 at each level"
        )
    split = [part for s in size for part in (s // 2, 2)]
    blocks = x.reshape(n, c, *split)
    outer = range(2, 2 + 2 * spatial_dims, 2)
    inner = range(3, 3 + 2 * spatial_dims, 2)
    moved = blocks.permute(0, 1, *inner, *outer)
    return moved.reshape(n, c * 2**spatial_dims, *(s // 2 for s in size))


def channels_to_blocks(x: Tensor, spatial_dims: int) -> Tensor:
    """Inverse of `blocks_to_channels`."""
    _check_dims(x, spatial_dims)
    n, c, *size = x.shape
    if c % 2**spatial_dims:
        raise ReversibleError(
            f"upsampling needs channels that divide by {2**spatial_dims}, but the stream has {c}"
        )
    blocks = x.reshape(n, c // 2**spatial_dims, *[2] * spatial_dims, *size)
    pairs = [axis for i in range(spatial_dims) for axis in (2 + spatial_dims + i, 2 + i)]
    moved = blocks.permute(0, 1, *pairs)
    return moved.reshape(n, c // 2**spatial_dims, *(2 * s for s in size))


def _haar(x: Tensor, spatial_dims: int, *, inverse: bool) -> Tensor:
    """Orthonormal Hadamard transform over each group of 2**spatial_dims channels.

    Symmetric and its own inverse but for rounding: the operations of the inverse are those of the
    gradient in plain autograd, so that either gives the same bits.
    """
    if isinstance(x, FixedPoint):
        exact = functools.partial(lifting.haar, spatial_dims=spatial_dims, inverse=inverse)
        transpose = functools.partial(_haar, spatial_dims=spatial_dims, inverse=not inverse)
        return linear(x, exact, transpose, growth=lifting.HAAR_GROWTH[spatial_dims])
    scale = 2.0 ** (-spatial_dims / 2)
    axes = range(spatial_dims)
    if inverse:
        return _sums_and_differences(x * scale, spatial_dims, reversed(axes))
    return _sums_and_differences(x, spatial_dims, axes) * scale


def _sums_and_differences(x: Tensor, spatial_dims: int, axes: Iterable[int]) -> Tensor:
    """(a, b) to (a + b, a - b) along each axis of the blocks in the channels.

    One axis at a time, so nothing larger than the stream arises.
    """
    n, c, *size = x.shape
    groups = c // 2**spatial_dims
    for axis in axes:
        pairs = x.reshape(n, groups * 2**axis, 2, 2 ** (spatial_dims - axis - 1), *size)
        a, b = pairs.unbind(2)
        x = torch.stack((a + b, a - b), 2).reshape(x.shape)
    return x


def _check_dims(x: Tensor, spatial_dims: int) -> None:
    if x.dim() != 2 + spatial_dims:
        raise ReversibleError(
            f"expected a stream with {spatial_dims} spatial axes (N, C, ...), got shape "
            f"{tuple(x.shape)}"
        )


def _alike(resample: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Resample, with a dense result in the memory format of `x`."""
    return dense(resample(x), dense_format(x))
