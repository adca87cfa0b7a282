"""Activation normalisation: each channel is scaled and shifted, from the first batch on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from revgrad.autograd.inventory import known
from revgrad.autograd.protocol import Gradients, State
from revgrad.autograd.recompute import is_recomputing, version
from revgrad.autograd.rewind import Rewind
from revgrad.dataless import has_data
from revgrad.errors import ReversibleError
from revgrad.fixed_point import to_float
from revgrad.nn.layer import ReversibleLayer
from revgrad.nn.logdet import at_least_float32, pixels

_EPSILON = 1e-6  # of the standard deviation, for channels that are constant


@known
class ActNorm(ReversibleLayer):
    """Scales and shifts each channel of both streams.

    In Glow (Kingma and Dhariwal 2018, section 3.1)::

        y = x * exp(log_scale) + shift

    The first batch in training mode sets both so that each channel comes out with mean 0 and
    variance 1; from then on they are ordinary parameters. That happens before the layer becomes a
    part of the tape, and not again where a batch is computed a second time. The buffer
    `initialised` says whether it happened, and is part of the state_dict. In evaluation mode
    nothing is set: before the first batch the layer is then the identity.

    Note:
        Where several processes train together, run one batch through the network under
        `torch.no_grad()` before wrapping it in DistributedDataParallel or sharding it: each would
        otherwise start from its own batch, and sharded parameters would lose what is written into
        them. Wrapping sends the first process's parameters to all. A training step of several
        processes that finds no start raises an error. An optimizer may be made before the first
        batch; a `torch.func` transform has to come after it.

    Args:
        channels: Channels of both streams together, C.
        dim: Axis of the channels.

    Shapes:
        Each stream keeps its shape. With `logdet=True` (N,) besides: for each pixel the sum of
        the log-scales.
    """

    gives_logdet = True
    initialised: Tensor

    def __init__(self, channels: int, *, dim: int = 1) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be at least 1, not {channels!r}")
        self.channels = channels
        self.dim = dim
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))
        self.register_buffer("initialised", torch.tensor(False))
        # Reading the buffer waits for a GPU, so it is read once for each of its versions.
        self._seen: tuple[Tensor, int] | None = None

    def extra_repr(self) -> str:
        return f"channels={self.channels}, dim={self.dim}"

    def __getstate__(self) -> dict[str, Any]:
        """Without what was seen: a copy's buffer counts its versions anew."""
        return {**self.__dict__, "_seen": None}

    def prepare(self, *streams: Any) -> None:
        """Start from the statistics of the first batch."""
        self._check(streams)
        if not self.training or is_recomputing() or not has_data(streams[0]):
            return
        if self._is_initialised():
            return
        if torch._C._are_functorch_transforms_active():
            raise ReversibleError(
                "ActNorm starts from its first batch, which can't be one of a torch.func "
                "transform: run a batch through the network before"
            )
        if not isinstance(self.log_scale, nn.Parameter):
            raise ReversibleError(
                "ActNorm writes its start into its parameters, but other tensors stand for them "
                "here (functional_call, DataParallel, a parametrisation): run a batch through the "
                "network before"
            )
        if torch.is_grad_enabled() and _several_processes():
            raise ReversibleError(
                "ActNorm starts from its first batch, which is another one in each process: run a "
                "batch through the network under torch.no_grad() before it is wrapped in "
                "DistributedDataParallel or sharded"
            )
        self._initialise(streams)

    def forward(
        self, x1: Tensor, x2: Tensor, *args: Any, logdet: bool = False, **kwargs: Any
    ) -> State:
        """Scale and shift."""
        streams = x1, x2
        self._check(streams)
        triples = zip(streams, self._factors(streams, 1), self._shifts(streams), strict=True)
        outputs = tuple(x * factor + shift for x, factor, shift in triples)
        return (*outputs, self._logdet(streams)) if logdet else outputs

    def inverse(
        self, y1: Tensor, y2: Tensor, *args: Any, logdet: bool = False, **kwargs: Any
    ) -> State:
        """Take shift and scale back."""
        streams = y1, y2
        self._check(streams)
        inputs = _products(self._unshifted(streams), self._factors(streams, -1))
        return (*inputs, -self._logdet(streams)) if logdet else inputs

    def backward_step(
        self, rewind: Rewind, outputs: State, grads: Gradients, *args: Any, **kwargs: Any
    ) -> tuple[State, Gradients]:
        """Invert, and scale the gradients."""
        filled = rewind.filled(outputs, grads[:2])
        scaled = self._unshifted(outputs)
        del outputs  # not to be held while gradients are computed
        for of_logdet in grads[2:]:
            if of_logdet is not None:
                rewind.book([(self.log_scale, self._pixels(scaled) * of_logdet.sum())])
        inputs = _products(scaled, self._factors(scaled, -1))
        if filled is None:
            return inputs, (None, None)
        of_scale = self._by_channel(d * x for d, x in zip(filled, scaled, strict=True))
        rewind.book([(self.log_scale, of_scale), (self.shift, self._by_channel(filled))])
        del scaled
        return inputs, _products(filled, self._factors(filled, 1))

    # --- inside -------------------------------------------------------------------------------

    def _is_initialised(self) -> bool:
        now = self.initialised, version(self.initialised)
        if self._seen is None or self._seen[0] is not now[0] or self._seen[1] != now[1]:
            if not self.initialised:
                return False
            self._seen = now
        return True

    @torch.no_grad()
    def _initialise(self, streams: State) -> None:
        wide = at_least_float32(self.log_scale.dtype)
        floats = [to_float(x).to(wide) for x in streams]
        count = self._pixels(streams).to(wide) * streams[0].shape[0]
        if count.amin() < 2:
            raise ReversibleError(
                "ActNorm starts from the variance of each channel in its first batch, which "
                f"takes two values of each; the streams have {[tuple(x.shape) for x in streams]}"
            )
        mean = self._by_channel(floats) / count
        centred = (x - m for x, m in zip(floats, self._shaped(mean, streams), strict=True))
        variance = self._by_channel(x.square() for x in centred) / count
        deviation = variance.sqrt() + _EPSILON
        self.log_scale.copy_(-deviation.log())
        self.shift.copy_(-mean / deviation)
        self.initialised.fill_(True)

    def _check(self, streams: Iterable[Tensor]) -> None:
        sizes = [x.shape[self.dim] for x in streams]
        if sum(sizes) != self.channels:
            raise ReversibleError(
                f"made for {self.channels} channels, but the streams have "
                f"{' + '.join(map(str, sizes))}"
            )

    def _shaped(self, by_channel: Tensor, streams: State) -> list[Tensor]:
        """What there is of each channel, (C,), for each stream, with as many axes."""
        parts = by_channel.split([x.shape[self.dim] for x in streams])
        shapes = []
        for x in streams:
            shape = [1] * x.dim()
            shape[self.dim] = -1
            shapes.append(shape)
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def _factors(self, streams: State, sign: int) -> State:
        """exp(sign * log_scale) for each stream, in its type."""
        parts = self._shaped((sign * self.log_scale).exp(), streams)
        return tuple(part.to(x.dtype) for part, x in zip(parts, streams, strict=True))

    def _shifts(self, streams: State) -> State:
        parts = self._shaped(self.shift, streams)
        return tuple(part.to(x.dtype) for part, x in zip(parts, streams, strict=True))

    def _unshifted(self, streams: State) -> State:
        return tuple(y - b for y, b in zip(streams, self._shifts(streams), strict=True))

    def _by_channel(self, streams: Iterable[Tensor]) -> Tensor:
        """The sum over all axes but the channels, (C,), in float32 at least."""
        sums = [
            x.transpose(0, self.dim).flatten(1).sum(1, dtype=at_least_float32(x.dtype))
            for x in streams
        ]
        return torch.cat(sums)

    def _pixels(self, streams: State) -> Tensor:
        """Of each channel, how many entries it has in a sample, (C,)."""
        counts = [
            self.log_scale.new_full((x.shape[self.dim],), pixels(x, self.dim), dtype=torch.float64)
            for x in streams
        ]
        return torch.cat(counts)

    def _logdet(self, streams: State) -> Tensor:
        dtype = at_least_float32(self.log_scale.dtype, streams[0].dtype)
        total = (self._pixels(streams).to(dtype) * self.log_scale.to(dtype)).sum()
        return total.expand(streams[0].shape[0]).clone()


def _several_processes() -> bool:
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    return distributed.get_world_size() > 1


def _products(a: State, b: State) -> State:
    return tuple(x * y for x, y in zip(a, b, strict=True))
