"""How a tensor becomes the two streams of a sequence, and where its inverse has to split."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from revgrad.autograd.layout import dense, dense_format, split_dense
from revgrad.autograd.protocol import State
from revgrad.dataless import autocast_is_on
from revgrad.errors import ReversibleError

Channels = tuple[int, ...]


def dense_streams(
    x: Tensor | State, split_dim: int, out_channels: Callable[[Channels], Channels] | None
) -> State:
    """Dense streams of a tensor or a tuple of tensors, float32 at least under autocast.

    Args:
        x: The tensor to split, or the streams.
        split_dim: The axis to split along.
        out_channels: None for the input of a sequence. For its output, what gives the channels of
            the output streams for those of the input streams.
    """
    if isinstance(x, Tensor):
        x = _at_least_float32(x)
        sizes = _input_sizes(x, split_dim)
        if out_channels is not None:
            sizes = _output_sizes(x, split_dim, out_channels)
        return tuple(split_dense(x, sizes, split_dim))
    if not isinstance(x, tuple | list) or not all(isinstance(t, Tensor) for t in x):
        raise TypeError(f"expected a tensor or a tuple of streams, not {type(x).__name__}")
    return tuple(dense(t, dense_format(t)) for t in map(_at_least_float32, x))


def _input_sizes(x: Tensor, split_dim: int) -> Channels:
    if not -x.dim() <= split_dim < x.dim():
        raise ReversibleError(
            f"an input of shape {tuple(x.shape)} has no axis {split_dim} to be split along"
        )
    total = x.shape[split_dim]
    if total < 2:
        raise ReversibleError(
            f"an axis of {total} can't be split into two streams; split_dim={split_dim} must have "
            "at least 2 entries"
        )
    return (total + 1) // 2, total // 2


def _output_sizes(
    y: Tensor, split_dim: int, out_channels: Callable[[Channels], Channels]
) -> Channels:
    total = y.shape[split_dim]
    if split_dim % y.dim() == 1:
        return _matching(total, out_channels)
    if total % 2:
        raise ReversibleError(
            f"how {total} entries of axis {split_dim} were split is not known; give the streams to "
            "inverse as a tuple"
        )
    return total // 2, total // 2


def _matching(total: int, out_channels: Callable[[Channels], Channels]) -> Channels:
    """The channels of the two output streams that have `total` together.

    The layers may change the number of channels, so it takes the input that gives `total`.
    """
    channels = total * 128 // sum(out_channels((64, 64)))
    for guess in (channels, channels + 1):
        sizes = out_channels(((guess + 1) // 2, guess // 2))
        if sum(sizes) == total and len(sizes) == 2:
            return sizes
    raise ReversibleError(
        f"no input of this sequence has an output with {total} channels in two streams; "
        "give the streams to inverse as a tuple"
    )


def _at_least_float32(x: Tensor) -> Tensor:
    half = x.dtype in (torch.float16, torch.bfloat16)
    return x.float() if half and autocast_is_on(x.device) else x
