"""The log-determinant of a sequence: the sum of what its layers give.

Wanted is ln |det dy/dx| by sample, of all entries of the sample together, as the change of
variables in a normalising flow needs it (RealNVP, Dinh et al. 2017, eq. 2). A layer of volume one,
such as an additive coupling, a permutation or an orthogonal matrix, contributes zero.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from revgrad.autograd.protocol import State
from revgrad.errors import ReversibleError
from revgrad.fixed_point import FixedPoint
from revgrad.nn.layer import ReversibleLayer

LOGDET = object()  # names the sum among the tapped values, where it is no user's


class LogDeterminant:
    """Sums the log-determinants of the layers of one pass through a sequence.

    Args:
        streams: The streams that enter.
        split_axis: The axis along which they were one tensor; None if they never were.

    Attributes:
        value: The sum so far, (N,), of the type of the streams, but at least float32.

    Raises:
        ReversibleError: If the first axis is not that of the samples.
    """

    def __init__(self, streams: State, split_axis: int | None) -> None:
        if split_axis == 0 or streams[0].dim() == 0:
            raise ReversibleError(
                "a log-determinant is given by sample, and the samples lie along axis 0; "
                "logdet=True can't be asked for where split_dim is 0 or streams have no axis"
            )
        first = streams[0]
        self._device = first.device
        self._dtype = first.grid.gradient_dtype if isinstance(first, FixedPoint) else first.dtype
        self._samples = first.shape[0]
        self.value = torch.zeros(
            self._samples, dtype=at_least_float32(self._dtype), device=self._device
        )

    def asked_of(self, layer: ReversibleLayer, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The layer's arguments by keyword, with `logdet` where it takes it."""
        if layer.knows_logdet:
            return {**kwargs, "logdet": True}
        if layer.preserves_volume:
            return kwargs
        raise ReversibleError(
            "does not know its log-determinant. Say volume_preserving = True in its class if the "
            "determinant of its Jacobian is 1 or -1; or gives_logdet = True, and let forward and "
            "inverse return it behind the streams where they are called with logdet=True"
        )

    def add(self, layer: ReversibleLayer, further: State) -> State:
        """Add what a layer returned behind its streams; returns what of it was something else."""
        if not layer.knows_logdet:
            return further
        shapes = [tuple(f.shape) for f in further]
        if shapes != [(self._samples,)]:
            raise ReversibleError(
                f"gave {shapes} behind its streams, but with logdet=True it must be one tensor of "
                f"shape {(self._samples,)}"
            )
        self.value = self.value + further[0]
        return ()

    def closed(self, factor: Tensor | None) -> Tensor:
        """The sum, made invalid where fixed-point streams are, see `close`."""
        return self.value if factor is None else self.value * factor.to(self.value.dtype)


def at_least_float32(*types: torch.dtype) -> torch.dtype:
    """The type in which many numbers of these types can be summed."""
    wide = torch.float32
    for dtype in types:
        wide = torch.promote_types(wide, dtype)
    return wide


def summed_by_sample(log_scale: Tensor) -> Tensor:
    """The sum over all axes but the first, in float32 at least: (N, ...) to (N,)."""
    return log_scale.flatten(1).sum(1, dtype=at_least_float32(log_scale.dtype))


def pixels(stream: Tensor, axis: int) -> int:
    """How many entries a channel has in a sample.

    Args:
        stream: (N, ...).
        axis: The axis of the channels.
    """
    others = set(range(1, stream.dim())) - {axis % stream.dim()}
    return math.prod(stream.shape[a] for a in others)
