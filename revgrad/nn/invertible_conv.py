"""Generic invertible mixing of channels: a 1x1 convolution by an LU decomposition."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from revgrad.autograd.inventory import known
from revgrad.autograd.layout import is_shared
from revgrad.autograd.protocol import Gradients, State
from revgrad.autograd.rewind import Rewind
from revgrad.dataless import without_autocast
from revgrad.errors import ReversibleError
from revgrad.nn.layer import ReversibleLayer
from revgrad.nn.logdet import at_least_float32, pixels
from revgrad.nn.mixing import channel_outer, channel_product
from revgrad.nn.orthogonal import random_rotation
from revgrad.ops.precision import full_precision


@known
class Invertible1x1Conv(ReversibleLayer):
    """Multiplies the channels of both streams together by one learnable invertible matrix.

    The invertible 1x1 convolution of Glow (Kingma and Dhariwal 2018, section 3.2), in its LU
    decomposition, see `PLUMatrix`: its log-determinant takes C additions, its inverse two
    triangular systems. Where the matrix shall stay orthogonal there is `ChannelMixing`.

    Args:
        channels: Channels of both streams together, C.
        init: "random" (a random rotation, as in Glow), "identity", or an invertible matrix (C, C).

    Shapes:
        Each stream keeps its shape, in any number of spatial axes. With `logdet=True` (N,)
        besides: the number of pixels times that of the matrix.

    Raises:
        ReversibleError: If the streams have not C channels together.
    """

    gives_logdet = True

    def __init__(self, channels: int, *, init: str | Tensor = "random") -> None:
        super().__init__()
        self.channels = channels
        self.matrix = PLUMatrix(_start(channels, init))

    def extra_repr(self) -> str:
        return f"channels={self.channels}"

    def forward(
        self, x1: Tensor, x2: Tensor, *args: Any, logdet: bool = False, **kwargs: Any
    ) -> State:
        """Mix."""
        streams = x1, x2
        self._check(streams)
        outputs = channel_product(self.matrix(), streams)
        return (*outputs, self._logdet(streams)) if logdet else outputs

    def inverse(
        self, y1: Tensor, y2: Tensor, *args: Any, logdet: bool = False, **kwargs: Any
    ) -> State:
        """Mix by the inverse matrix."""
        streams = y1, y2
        self._check(streams)
        inputs = channel_product(self.matrix.inverse(), streams)
        return (*inputs, -self._logdet(streams)) if logdet else inputs

    def backward_step(
        self, rewind: Rewind, outputs: State, grads: Gradients, *args: Any, **kwargs: Any
    ) -> tuple[State, Gradients]:
        """Mix the streams by the inverse matrix, their gradients by the transposed one."""
        weight = rewind.weight(self.matrix)
        for of_logdet in grads[2:]:
            if of_logdet is not None:
                log_scale = self.matrix.log_scale
                each = (of_logdet.sum() * pixels(outputs[0], 1)).expand_as(log_scale)
                rewind.book([(log_scale, each)])
        in_place = not rewind.differentiable and not any(map(is_shared, outputs))
        filled = rewind.filled(outputs, grads[:2])
        into = outputs if in_place else None
        inputs = channel_product(self.matrix.inverse(), outputs, into=into)
        del outputs, into  # not to be held while the gradients are mixed
        if filled is None:
            return inputs, (None, None)
        if weight.needs_grad:
            weight.book(channel_outer(filled, inputs, weight.value.dtype))
        return inputs, channel_product(weight.value.mT, filled)

    def _logdet(self, streams: State) -> Tensor:
        dtype = at_least_float32(self.matrix.log_scale.dtype, streams[0].dtype)
        total = pixels(streams[0], 1) * self.matrix.log_scale.sum(dtype=dtype)
        return total.expand(streams[0].shape[0]).clone()

    def _check(self, streams: State) -> None:
        sizes = [x.shape[1] for x in streams]
        if sum(sizes) != self.channels:
            raise ReversibleError(
                f"made for {self.channels} channels, but the streams have "
                f"{' + '.join(map(str, sizes))}"
            )


@known
class PLUMatrix(nn.Module):
    """An invertible matrix W = P L (U + diag(sign * exp(log_scale))).

    P, a permutation, and the signs stay as they are; L is lower triangular with ones on the
    diagonal, U strictly upper triangular. `ln |det W|` is the sum of `log_scale`.

    Args:
        start: The matrix (C, C) to start from.

    Raises:
        ValueError: If it has no inverse.
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        p, lower, upper = torch.linalg.lu(start.detach().double())
        diagonal = upper.diagonal()
        if not bool((diagonal.abs() > 1e-12 * diagonal.abs().amax()).all()):
            raise ValueError("the matrix to start from has no inverse")
        dtype = torch.get_default_dtype()
        self.lower = nn.Parameter(lower.tril(-1).to(dtype))
        self.upper = nn.Parameter(upper.triu(1).to(dtype))
        self.log_scale = nn.Parameter(diagonal.abs().log().to(dtype))
        self.register_buffer("permutation", p.argmax(1))
        self.register_buffer("sign", diagonal.sign().to(dtype))

    def forward(self) -> Tensor:
        """The matrix (C, C), in float32 at least."""
        with without_autocast(self.lower.device), full_precision(self.lower.device):
            lower, upper = self._factors()
            return (lower @ upper)[self.permutation]

    def inverse(self) -> Tensor:
        """The inverse (C, C), by two triangular systems."""
        with without_autocast(self.lower.device), full_precision(self.lower.device):
            lower, upper = self._factors()
            identity = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
            permuted = identity[self.permutation].mT
            inner = torch.linalg.solve_triangular(lower, permuted, upper=False, unitriangular=True)
            return torch.linalg.solve_triangular(upper, inner, upper=True)

    def _factors(self) -> tuple[Tensor, Tensor]:
        wide = at_least_float32(self.lower.dtype)
        identity = torch.eye(len(self.lower), dtype=wide, device=self.lower.device)
        diagonal = self.sign.to(wide) * self.log_scale.to(wide).exp()
        lower = self.lower.to(wide).tril(-1) + identity
        return lower, self.upper.to(wide).triu(1) + diagonal.diag()


def _start(channels: int, init: str | Tensor) -> Tensor:
    """The matrix (C, C) that `init` stands for."""
    if isinstance(init, Tensor):
        if init.shape != (channels, channels):
            raise ValueError(
                f"init must be a matrix ({channels}, {channels}), not {tuple(init.shape)}"
            )
        return init
    if init == "identity":
        return torch.eye(channels)
    if init == "random":
        return random_rotation((channels,), 1)[0]
    raise ValueError(f"init must be a tensor, 'identity' or 'random', not {init!r}")
