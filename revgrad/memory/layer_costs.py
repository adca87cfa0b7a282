"""What each layer of a model's sequences costs by way: bytes kept, and seconds, on its device."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from revgrad.autograd.context import evaluating
from revgrad.autograd.layout import memory_of
from revgrad.autograd.protocol import State
from revgrad.fixed_point import to_float
from revgrad.fixed_point.range_watch import watching
from revgrad.nn.arithmetic import new_watch
from revgrad.nn.layer import IsometricLayer, ReversibleLayer
from revgrad.nn.schedule import INVERT, RECOMPUTE, STORE, WAYS
from revgrad.nn.sequence import ReversibleSequence

from .estimate import estimate
from .fastest import Cost

_ALIKE = 3  # of layers that are alike, no more are timed


@dataclass
class Call:
    """A sequence of a model, and how the model calls it.

    Attributes:
        name: Its name in the model.
        sequence: The sequence.
        x: Its input.
        args: Its side inputs.
        kwargs: The same by keyword.
        logdet: Whether it is asked for its log-determinant.
        dtype: The type of autocast around the call; None where that is off.
        times: How often it is called.
    """

    name: str
    sequence: ReversibleSequence
    x: Any = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    logdet: bool = False
    dtype: torch.dtype | None = None
    times: int = 0

    def note(self, args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device) -> None:
        """Note a call."""
        self.kwargs = dict(kwargs)
        self.x, *rest = args or (self.kwargs.pop("x"),)
        self.args = tuple(rest)
        self.logdet = self.kwargs.pop("logdet", False)
        autocast = torch.is_autocast_enabled(device.type)
        self.dtype = torch.get_autocast_dtype(device.type) if autocast else None
        self.times += 1


@dataclass
class LayerCost:
    """A layer, by the names of its sequence and of its place there, and what it costs."""

    sequence: str
    place: str
    kind: str
    cost: Cost


def costs_of_layers(calls: list[Call], repeats: int, device: torch.device) -> list[LayerCost]:
    """Measure every layer of some sequences on the arguments that they were called with.

    Times are the shortest of several, which other processes disturb least, in which the ways take
    turns. Layers that are alike (print the same, and take streams of the same shapes and strides)
    share them, and only a few are timed.
    """
    alike: dict[Any, _Alike] = defaultdict(_Alike)
    found: list[tuple[Call, str, ReversibleLayer, _Bytes, _Alike]] = []
    for call in calls:
        autocast = torch.autocast(device.type, call.dtype, enabled=call.dtype is not None)
        with torch.enable_grad(), autocast:
            for place, layer, state, kept in _walk(call):
                streams = tuple(to_float(s).detach() for s in state[: layer.num_inputs])
                group = alike[_signature(layer, streams)]
                if not group.layers:
                    group.estimate(call, layer, streams, kept, device)
                if group.layers < _ALIKE:
                    group.measure(call, layer, streams, repeats)
                found.append((call, place, layer, kept, group))
    firsts = {call.name: place for call, place, *_ in reversed(found)}
    return [
        LayerCost(
            call.name,
            place,
            type(layer).__name__,
            _cost(call, kept, group, firsts[call.name] == place),
        )
        for call, place, layer, kept, group in found
    ]


def _cost(call: Call, kept: _Bytes, group: _Alike, first: bool) -> Cost:
    return Cost(
        recompute=call.times * kept.recompute,
        store=call.times * kept.store,
        state=call.times * kept.state,
        # What waits on the tape, and its gradient.
        invert_space=group.space[INVERT] + 2 * kept.waiting,
        store_space=group.space[STORE] + 2 * kept.waiting,
        recompute_seconds=call.times * group.saved(RECOMPUTE),
        store_seconds=call.times * group.saved(STORE),
        state_seconds=call.times * group.end_of_tape(),
        first=first,
    )


# --- bytes --------------------------------------------------------------------------------------


@dataclass
class _Bytes:
    """What a layer keeps.

    Attributes:
        recompute: Its input.
        store: What ordinary autograd keeps.
        made: Of that, what it made itself: all but its input.
        state: The state before it, but for what is in `store`.
        waiting: Skips that pass it by.
    """

    recompute: int
    store: int
    made: int
    state: int
    waiting: int


def _walk(call: Call) -> Iterator[tuple[str, ReversibleLayer, State, _Bytes]]:
    """Each layer with its place, the state before it, and the bytes that it keeps."""
    sequence = call.sequence
    watch = new_watch(sequence.arithmetic, sequence.fraction_bits, sequence.check)
    state = tuple(_alone(s) for s in sequence._open(call.x, watch))
    for place, layer in sequence._named_layers():
        streams, rest = state[: layer.num_inputs], state[layer.num_inputs :]
        with evaluating(None), watching(None):
            asked = {"logdet": True} if call.logdet and layer.knows_logdet else {}
            outputs, saved = _saved(layer, streams, call.args, {**call.kwargs, **asked})
        sizes = {_address(s): memory_of(s).nbytes for s in state}
        own = sum(sizes[_address(s)] for s in streams)
        taken = sum(size for at, size in sizes.items() if at in saved)
        kept = _Bytes(
            recompute=own,
            store=sum(saved.values()),
            made=sum(saved.values()) - taken,
            state=sum(sizes.values()) - taken,
            waiting=sum(sizes.values()) - own,
        )
        yield place, layer, state, kept
        state = (*(_alone(o) for o in outputs[: layer.num_outputs]), *rest)


def _address(stream: Tensor) -> int:
    return memory_of(stream).untyped_storage().data_ptr()


def _alone(stream: Tensor) -> Tensor:
    """A stream in a storage of its own, unknown to autograd."""
    stream = stream.detach()
    return (
        stream if stream.nbytes == memory_of(stream).untyped_storage().nbytes() else stream.clone()
    )


def _saved(
    layer: ReversibleLayer, streams: State, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[State, dict[int, int]]:
    """A layer's outputs, and bytes by address of what ordinary autograd keeps of it."""
    own = (*layer.parameters(), *layer.buffers())
    known = {t.untyped_storage().data_ptr() for t in own}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = memory_of(tensor).untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # with its history it could hold the graph that holds it

    leaves = tuple(s.detach().requires_grad_() for s in streams)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = layer(*leaves, *args, **kwargs)
    return outputs, saved


# --- seconds ------------------------------------------------------------------------------------


class _Passing(IsometricLayer):
    """Does nothing: its time is that of a tape's ends."""

    exact = True

    def __init__(self, count: int) -> None:
        super().__init__()
        self.num_inputs = self.num_outputs = count

    def forward(self, *streams: Any, **kwargs: Any) -> State:
        """The streams as they are."""
        return streams[: self.num_inputs]

    def inverse(self, *streams: Any, **kwargs: Any) -> State:
        """The streams as they are."""
        return streams[: self.num_inputs]


class _Alike:
    """Layers that are alike.

    Attributes:
        layers: How many of them were timed.
        space: Bytes by way of a step of one alone, besides weights, gradients and what is kept.
    """

    def __init__(self) -> None:
        self.layers = 0
        self.space: dict[str, int] = {}
        self._shortest: dict[tuple[str, str], float] = {}  # by what was timed, and its way

    def saved(self, way: str) -> float:
        """By how much a way is faster than inverting, the ends of the tape aside."""
        seconds = {w: self._shortest["layer", w] for w in WAYS}
        end = 0.0 if way != STORE else self.end_of_tape()
        return seconds[INVERT] - seconds[way] - end

    def end_of_tape(self) -> float:
        """How long a tape takes to begin and to end."""
        return max(self._shortest["nothing", INVERT] - self._shortest["nothing", STORE], 0.0)

    def estimate(
        self,
        call: Call,
        layer: ReversibleLayer,
        streams: State,
        kept: _Bytes,
        device: torch.device,
    ) -> None:
        """Find out what steps of the layer alone take."""
        given = tuple(s.detach().requires_grad_() for s in streams)
        for way, made in ((INVERT, 0), (STORE, kept.made)):
            alone = _Alone(_sequence(call, layer, way), call)
            report = estimate(alone, given, dtype=call.dtype, device=device.type)
            self.space[way] = report.allocated - report.parameters - report.gradients - made

    def measure(self, call: Call, layer: ReversibleLayer, streams: State, repeats: int) -> None:
        """Time steps of the layer alone in every way, in turn."""
        self.layers += 1
        passing = _Passing(len(streams))
        steps = {("layer", way): _step(call, layer, streams, way) for way in WAYS}
        for way in (INVERT, STORE):
            steps["nothing", way] = _step(call, passing, streams, way)
        for step in steps.values():
            step()
        for _ in range(repeats):
            for key, step in steps.items():
                seconds = _timed(step, streams[0].device)
                self._shortest[key] = min(seconds, self._shortest.get(key, seconds))


def _sequence(call: Call, layer: ReversibleLayer, way: str) -> ReversibleSequence:
    """A layer in a sequence of its own."""
    outer = call.sequence
    options: dict[str, Any] = {"arithmetic": outer.arithmetic, "check": outer.check}
    return ReversibleSequence([layer], schedule=way, fraction_bits=outer.fraction_bits, **options)


class _Alone(nn.Module):
    """A sequence with its side inputs, called with streams as single arguments."""

    def __init__(self, sequence: ReversibleSequence, call: Call) -> None:
        super().__init__()
        self.sequence = sequence
        self.call = call

    def forward(self, *streams: Tensor) -> State:
        """What the layer gives, without what it taps."""
        return _run(self.sequence, self.call, streams)


def _run(sequence: ReversibleSequence, call: Call, streams: State) -> State:
    """The streams and the log-determinant that a sequence gives, as far as they have gradients."""
    output = sequence(streams, *call.args, logdet=call.logdet, **call.kwargs)
    if isinstance(output[-1], dict):  # of tapped values
        output = output[:-1] if call.logdet else output[0]
    outputs = (*output[0], output[1]) if call.logdet else output
    return tuple(t for t in outputs if t.requires_grad or not torch.is_grad_enabled())


def _step(call: Call, layer: ReversibleLayer, streams: State, way: str) -> Callable[[], None]:
    """A forward and a backward pass through a layer alone; no gradient is booked anywhere."""
    net = _sequence(call, layer, way)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    grads: list[Tensor] = []

    def step() -> None:
        leaves = [s.detach().requires_grad_() for s in streams]
        outputs = _run(net, call, tuple(leaves))
        if not grads:
            grads.extend(torch.ones_like(o) for o in outputs)
        torch.autograd.grad(outputs, [*leaves, *parameters], grads, allow_unused=True)

    return step


def _timed(step: Callable[[], object], device: torch.device) -> float:
    _finish(device)
    start = time.perf_counter()
    step()
    _finish(device)
    return time.perf_counter() - start


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(step: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The shortest time of a step, after one to warm up."""
    step()
    return min(_timed(step, device) for _ in range(repeats))


def _signature(layer: ReversibleLayer, streams: State) -> Any:
    shapes = tuple((tuple(s.shape), s.stride(), s.dtype) for s in streams)
    weights = tuple((tuple(p.shape), p.requires_grad) for p in layer.parameters())
    return type(layer), str(layer), shapes, weights, layer.training


@contextmanager
def unchanged(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Put buffers, what layers prepare of themselves, and random generators back afterwards."""
    places = [(m._buffers, key) for m in model.modules() for key in m._buffers]
    found = [(buffers, key, buffers[key]) for buffers, key in places]
    prepared = [p for m in model.modules() if _prepares(m) for p in m._parameters.values()]
    tensors = [t for t in (*(b for *_, b in found), *prepared) if t is not None]
    copies = [t.detach().clone() for t in tensors]
    python = random.getstate()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        with torch.no_grad():
            for tensor, before in zip(tensors, copies, strict=True):
                tensor.copy_(before)
        for buffers, key, buffer in found:
            buffers[key] = buffer  # it may have been replaced by a new tensor


def _prepares(module: nn.Module) -> bool:
    """Whether a layer sets its own parameters before its first forward pass, as `ActNorm` does."""
    return (
        isinstance(module, ReversibleLayer) and type(module).prepare is not ReversibleLayer.prepare
    )
