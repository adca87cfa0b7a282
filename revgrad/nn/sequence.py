"""The reversible sequence: the module that a user wraps a network in."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from revgrad.autograd.closing import (
    ReadableGradients,
    close_plainly,
    opened,
    with_laid_out_gradients,
)
from revgrad.autograd.context import calling, evaluating, take_place
from revgrad.autograd.inventory import known, may_misread_gradients
from revgrad.autograd.layout import gradient_strides
from revgrad.autograd.outside import outside_of_compiler
from revgrad.autograd.protocol import State
from revgrad.autograd.tape import Identities, expect_unchanged, identities
from revgrad.autograd.tapes import Tapes
from revgrad.errors import ReversibleError, locate
from revgrad.fixed_point import FixedPoint
from revgrad.fixed_point.range_watch import RangeWatch, watching
from revgrad.nn.arithmetic import (
    entered,
    forward_mode_is_on,
    new_watch,
    refuse_unknown,
    warn_of_drift,
)
from revgrad.nn.compile_module import compile_module
from revgrad.nn.layer import ReversibleLayer
from revgrad.nn.logdet import LOGDET, LogDeterminant
from revgrad.nn.schedule import INVERT, RECOMPUTE, STORE, Schedule, Ways
from revgrad.nn.streams import dense_streams
from revgrad.nn.tap import Tap


@known
class ReversibleSequence(nn.Module):
    """A sequence of reversible layers that trains without storing their activations.

    The backward pass computes each layer's input back from its output, so that memory does not
    grow with depth. Gradients are those of ordinary autograd: to the bit in exact arithmetic, up
    to the rounding of computing back in floating-point arithmetic. ::

        net = ReversibleSequence([AdditiveCoupling(block(), block()) for _ in range(50)])
        y = net(x)  # x: (N, C, ...), split into two streams of C / 2 channels

    Args:
        layers: `ReversibleLayer` modules; a sequence may contain sequences, which run on the
            tape of the outermost one: of their options only `anchor_every` counts there.
        split_dim: Axis along which a tensor is split into the two streams and joined at the end.
            An odd axis gives the first stream one more. A tuple of tensors is taken as the
            streams themselves, and given back as a tuple.
        anchor_every: Store the output of every n-th layer of this sequence too. The backward pass
            starts anew from each, which bounds the drift of computing back by n layers.
        save_memory: If False, ordinary autograd of the same function. May be changed at any time.
        schedule: What is kept of each layer for the backward pass. "invert": nothing, its input is
            computed back. "recompute": its input is stored, and it is run again. "store": ordinary
            autograd, whose graph is kept; the fastest, and the most memory. One of them for all, a
            list with one for each layer, or a dictionary such as {3: "store", "5.0": "recompute"}
            (what is missing is inverted; "5.0" is the first layer of a sequence that is layer 5).
            May be changed at any time; `revgrad.memory.plan` finds the fastest within a budget.
        arithmetic: "float", or "exact": then the streams are fixed-point numbers in 32 bits, whose
            sums can be taken back to the bit. Sub-networks see them as floats of the input's type;
            their values are rounded to the grid (with the derivative of the identity). The input
            of a layer without an exact form (see `ReversibleLayer.exact`) is stored.
        fraction_bits: Binary digits behind the point of exact streams, 0 to 30. The streams must
            stay below 2**(31 - fraction_bits) in size; see `revgrad.suggest_fraction_bits`.
        check: When it is noticed that exact streams leave their range. "async": at the end of the
            forward pass on a CPU. A GPU is not waited for: output and gradient become NaN there,
            and the next call of an exact sequence after the host has waited raises the error.
            "sync": waits and raises in each layer. The error names the layer.

    Shapes:
        x: (N, C, ...) or a tuple of streams. The output has the shape that the layers give. A
        `revgrad.FixedPoint` gives one back, which `inverse` turns into the input to the bit.

    Note:
        Under autocast the streams are float32 (half-precision inputs are converted): their sums
        have to be taken back. Where nothing needs a gradient, and under `torch.func` transforms
        and forward-mode differentiation, the layers run as ordinary modules.
    """

    def __init__(
        self,
        layers: Iterable[nn.Module],
        *,
        split_dim: int = 1,
        anchor_every: int | None = None,
        save_memory: bool = True,
        schedule: Schedule = INVERT,
        arithmetic: str = "float",
        fraction_bits: int = 20,
        check: str = "async",
    ) -> None:
        super().__init__()
        refuse_unknown(arithmetic, fraction_bits, check)
        self.layers = nn.ModuleList(layers)
        for i, layer in enumerate(self.layers):
            if not isinstance(layer, ReversibleLayer | ReversibleSequence):
                raise TypeError(
                    f"layer {i} is a {type(layer).__name__}, which is no ReversibleLayer. Use it "
                    "as the sub-network of a coupling, AdditiveCoupling(module), or before or "
                    "after the sequence"
                )
        if anchor_every is not None and anchor_every < 1:
            raise ValueError(f"anchor_every must be at least 1 or None, not {anchor_every!r}")
        if anchor_every is not None and arithmetic == "exact":
            raise ValueError("exact arithmetic does not drift, so anchor_every must be None")
        _refuse_doubled_taps(self)
        _refuse_exact_inside(self, arithmetic)
        self.split_dim = split_dim
        self.anchor_every = anchor_every
        self.save_memory = save_memory
        self.schedule = schedule
        self.arithmetic = arithmetic
        self.fraction_bits = fraction_bits
        self.check = check

    @property
    def schedule(self) -> str | dict[str, str]:
        """What is kept of each layer: one way for all, or a dictionary from places to ways.

        Without places that a layer was deleted from.
        """
        return self._ways.plain(self._places())

    @schedule.setter
    def schedule(self, schedule: Schedule) -> None:
        self._ways = Ways(schedule, self._places())

    def forward(self, x: Tensor | State, *args: Any, logdet: bool = False, **kwargs: Any) -> Any:
        """Run the layers.

        Args:
            x: A tensor to be split into two streams, or the streams as a tuple.
            *args: Side inputs, handed to every sub-network. Tensors in them, at any depth of
                tuples, lists and dictionaries, get their gradients.
            logdet: Give the log-determinant too, see `revgrad.nn.logdet`.
            **kwargs: Side inputs by keyword.

        Returns:
            The output, joined if `x` was one tensor. With `logdet` and with taps a tuple: the
            output, the logarithm of the absolute value of the determinant of the Jacobian by
            sample (N,), a dictionary of the tapped values.
        """
        if torch.compiler.is_dynamo_compiling():
            from revgrad.nn.compiled import run_traced

            return run_traced(self, x, args, kwargs, logdet)
        return self._run(x, args, kwargs, logdet)

    @outside_of_compiler
    def _run(
        self, x: Tensor | State, args: tuple[Any, ...], kwargs: dict[str, Any], logdet: bool
    ) -> Any:
        """As `forward`, untraced."""
        passage: _Passage | None = take_place(self)
        if passage is not None:
            return self._pass(passage, x, args, kwargs)
        watch = new_watch(self.arithmetic, self.fraction_bits, self.check)
        with evaluating(None), watching(watch):
            state = self._open(x, watch)
            contiguous = may_misread_gradients(self)
            tapes = None
            if self._can_save(state, args, kwargs):
                tapes = Tapes(self._label(), contiguous)
            passage = _Passage(tapes, watch, contiguous, self._ways)
            if logdet:
                passage.sum_logdet(LogDeterminant(state, _split_axis(x, self.split_dim)))
            state = self._pass(passage, state, args, kwargs)
            factor = None if watch is None else watch.finish(wait=not _are_floats(x))
        if tapes is not None and watch is None and self.anchor_every is None:
            warn_of_drift(state, tapes.longest)
        output = self._close(passage, state, x, factor)
        further: list[Any] = [] if passage.logdet is None else [passage.taps.pop(LOGDET)]
        further += [passage.taps] if self._has_taps() else []
        return (output, *further) if further else output

    def inverse(self, y: Tensor | State, *args: Any, logdet: bool = False, **kwargs: Any) -> Any:
        """Compute the input from the output, by ordinary autograd where gradients are needed.

        Args:
            y: The output of `forward`, without tapped values.
            *args: The side inputs of `forward`.
            logdet: Give the log-determinant of the inverse too.
            **kwargs: The same by keyword.

        Returns:
            The input; with `logdet` a tuple of the input and the logarithm of the absolute value
            of the determinant of the inverse's Jacobian by sample, (N,).
        """
        if torch.compiler.is_dynamo_compiling():
            from revgrad.nn.compiled import run_traced_inverse

            return run_traced_inverse(self, y, args, kwargs, logdet)
        return self._invert(y, args, kwargs, logdet)

    @outside_of_compiler
    def _invert(
        self, y: Tensor | State, args: tuple[Any, ...], kwargs: dict[str, Any], logdet: bool
    ) -> Any:
        """As `inverse`, untraced."""
        watch = new_watch(self.arithmetic, self.fraction_bits, self.check)
        with evaluating(None), watching(watch):
            state = self._open(y, watch, inverse=True)
            sums = LogDeterminant(state, _split_axis(y, self.split_dim)) if logdet else None
            for name, layer in reversed(list(self._named_layers())):
                state = _inverted(layer, where_is(layer, name), state, args, kwargs, watch, sums)
            factor = None if watch is None else watch.finish(wait=not _are_floats(y))
        inputs = (torch.cat(state, self.split_dim),) if isinstance(y, Tensor) else state
        inputs = opened(inputs, _are_floats(y), factor)
        x = inputs[0] if isinstance(y, Tensor) else inputs
        return x if sums is None else (x, sums.closed(factor))

    def compile_sub_networks(self, **options: Any) -> Self:
        """Compile each sub-network by itself, in place.

        The sequence runs them from its tape as before, so all that it can do stays: dropout, batch
        norm, taps, exact arithmetic. Sub-networks that are alike share what is compiled: each kind
        is compiled twice, for the forward pass and for the repetition.

        Args:
            **options: Those of `torch.compile`.

        Returns:
            The sequence.
        """
        modules = [m for _, layer in self._named_layers() for m in layer.sub_networks()]
        for module in dict.fromkeys(modules):
            compile_module(module, **options)
        return self

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int) -> nn.Module:
        return self.layers[index]

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.layers)

    def extra_repr(self) -> str:
        options = (
            f"split_dim={self.split_dim}, anchor_every={self.anchor_every}, "
            f"save_memory={self.save_memory}, arithmetic={self.arithmetic!r}"
        )
        if self.schedule != INVERT:
            options += f", schedule={self.schedule}"
        if self.arithmetic == "float":
            return options
        options += f", fraction_bits={self.fraction_bits}, check={self.check!r}"
        stored = [where_is(la, name) for name, la in self._named_layers() if not la.is_exact]
        return options + (
            f"\ninput stored, as it has no exact form: {', '.join(stored)}" * bool(stored)
        )

    # --- inside -------------------------------------------------------------------------------

    def _open(self, x: Tensor | State, watch: RangeWatch | None, inverse: bool = False) -> State:
        """Make dense streams of the input, or of the output for the inverse."""
        streams = dense_streams(x, self.split_dim, self._out_channels if inverse else None)
        return entered(streams, self.fraction_bits, watch)

    def _out_channels(self, channels: tuple[int, ...]) -> tuple[int, ...]:
        for _, layer in self._named_layers():
            taken = layer.num_inputs
            channels = layer.out_channels(channels[:taken]) + channels[taken:]
        return channels

    def _can_save(self, state: State, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether there is a backward pass to save memory for, and the tape can serve it."""
        if not self.save_memory or not torch.is_grad_enabled():
            return False
        ways = {self._ways.of(place) for place, _ in self._named_layers()}
        if ways == {STORE}:
            return False
        if torch._C._are_functorch_transforms_active() or forward_mode_is_on():
            return False
        tensors = (t for t in tree_leaves((state, args, kwargs)) if isinstance(t, Tensor))
        return any(t.requires_grad for t in tensors) or any(
            p.requires_grad for p in self.parameters()
        )

    def _pass(
        self, passage: _Passage, x: Tensor | State, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> State:
        """Run the state through the layers, on the passage's tape if it has one."""
        state = tuple(x)
        if passage.tapes is not None:
            passage.entered = identities(state)
        for i, layer in enumerate(self.layers):
            if isinstance(layer, ReversibleSequence):
                state = self._pass_inner(layer, passage.inside(i), state, args, kwargs)
                continue
            assert isinstance(layer, ReversibleLayer)
            where = where_is(layer, f"{passage.prefix}{i}")
            if passage.watch is not None:
                passage.watch.where = where
            try:
                _enough(state, layer.num_inputs)
                way = passage.ways.of(f"{passage.prefix}{i}")
                state = passage.enter(way, where, state)
                state, extra = passage.run(layer, way, where, state, args, kwargs, self._anchors(i))
            except Exception as error:
                locate(error, where)
                raise
            if isinstance(layer, Tap):
                passage.tap(layer.name, extra[0])
        if passage.tapes is not None:
            passage.left = identities(state)
        return state

    def _pass_inner(
        self,
        inner: ReversibleSequence,
        passage: _Passage,
        state: State,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> State:
        """Run a sequence that is a layer of this one, with its hooks."""
        with calling(inner, passage):
            outputs: State = inner(state, *args, **kwargs)
        if passage.tapes is not None:
            where = f"sequence {passage.prefix.rstrip('.')}"
            try:
                expect_unchanged(state, passage.entered, "input of this sequence")
                expect_unchanged(outputs, passage.left, "output of this sequence")
            except ReversibleError as error:
                locate(error, where)
                raise
        return outputs

    def _anchors(self, i: int) -> bool:
        return self.anchor_every is not None and (i + 1) % self.anchor_every == 0

    def _close(
        self, passage: _Passage, state: State, x: Tensor | State, factor: Tensor | None
    ) -> Tensor | State:
        """The output in the form of the input `x`: joined or not, floats or fixed-point."""
        joined, floats = isinstance(x, Tensor), _are_floats(x)
        if joined and len(state) != 2:
            raise ReversibleError(
                f"the sequence ends with {len(state)} tensors in its state: a SplitSkip lacks its "
                "JoinSkip. Join it, or give the input as a tuple of streams to get a tuple back"
            )
        dim = self.split_dim if joined else None
        output: Tensor | State
        options: dict[str, Any] = {"floats": floats, "factor": factor}
        if passage.tapes is not None and passage.tapes.current is not None:
            output = passage.tapes.close(dim, state, passage.taps, **options)
        elif passage.watch is not None:
            output, taps = close_plainly(dim, state, tuple(passage.taps.values()), **options)
            passage.taps = dict(zip(passage.taps, taps, strict=True))
        else:
            output = state if dim is None else torch.cat(state, dim)
        return output

    def _named_layers(self, prefix: str = "") -> Iterator[tuple[str, ReversibleLayer]]:
        """The layers, those of inner sequences in their place."""
        for i, layer in enumerate(self.layers):
            if isinstance(layer, ReversibleSequence):
                yield from layer._named_layers(f"{prefix}{i}.")
            elif isinstance(layer, ReversibleLayer):
                yield f"{prefix}{i}", layer

    def _places(self, prefix: str = "") -> Iterator[str]:
        """The places of the layers, and of inner sequences before what is in them."""
        for i, layer in enumerate(self.layers):
            yield f"{prefix}{i}"
            if isinstance(layer, ReversibleSequence):
                yield from layer._places(f"{prefix}{i}.")

    def _has_taps(self) -> bool:
        return any(isinstance(layer, Tap) for _, layer in self._named_layers())

    def _label(self) -> str:
        return f"{type(self).__name__} of {len(self)} layers"


@dataclass
class _Passage:
    """One run through a sequence and the sequences inside it."""

    tapes: Tapes | None
    watch: RangeWatch | None
    contiguous_gradients: bool
    ways: Ways
    taps: dict[Hashable, Tensor] = field(default_factory=dict)
    logdet: LogDeterminant | None = None
    prefix: str = ""
    entered: Identities | None = None
    left: Identities | None = None

    def inside(self, i: int) -> _Passage:
        """The same passage inside the sequence that is layer `i`."""
        prefix = f"{self.prefix}{i}."
        contiguous = self.contiguous_gradients
        shared = self.tapes, self.watch, contiguous, self.ways, self.taps, self.logdet
        return _Passage(*shared, prefix)

    def sum_logdet(self, logdet: LogDeterminant) -> None:
        """Sum log-determinants; the sum leaves the tapes as a tapped value does."""
        self.logdet = logdet
        self.taps[LOGDET] = logdet.value

    def enter(self, way: str, where: str, state: State) -> State:
        """The state as a layer of this way takes it: a stored one ends the running tape."""
        if self.tapes is None or way != STORE:
            return state
        state = self.tapes.leave(where, state, self.taps)
        if self.logdet is not None:
            self.logdet.value = self.taps[LOGDET]
        return state

    def tap(self, name: Hashable, value: Tensor) -> None:
        """Note a tapped value."""
        self.taps[name] = value
        if self.tapes is not None:
            self.tapes.tap(name, value)

    def run(
        self,
        layer: ReversibleLayer,
        way: str,
        where: str,
        state: State,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        anchor: bool,
    ) -> tuple[State, State]:
        """The state after `layer`, and what it gave besides."""
        if self.logdet is not None:
            kwargs = self.logdet.asked_of(layer, kwargs)
        if self.tapes is not None and way != STORE:
            holds_streams = isinstance(layer, Tap) and layer.head is None
            # Exact streams do not drift, and a tapped value holds them rounded to floats.
            anchor = (anchor or holds_streams) and self.watch is None
            recompute = way == RECOMPUTE and not holds_streams
            options = {"anchor": anchor, "recompute": recompute}
            state, rest = self.tapes.run(layer, where, state, args, kwargs, **options)
            return state, self._without_logdet(layer, rest)
        taken = state[: layer.num_inputs]
        with evaluating(ReadableGradients() if self._must_be_read_with_care(taken) else None):
            outputs = layer(*taken, *args, **kwargs)
        streams, rest = tuple(outputs[: layer.num_outputs]), tuple(outputs[layer.num_outputs :])
        if self.watch is not None or self._may_be_misread(streams):
            streams = with_laid_out_gradients(streams, self.contiguous_gradients)
        return streams + state[layer.num_inputs :], self._without_logdet(layer, rest)

    def _without_logdet(self, layer: ReversibleLayer, further: State) -> State:
        if self.logdet is None or not layer.knows_logdet:
            return further
        rest = self.logdet.add(layer, further)
        self.tap(LOGDET, self.logdet.value)
        return rest

    def _must_be_read_with_care(self, streams: State) -> bool:
        """Whether sub-networks might misread what a layer makes of a gradient."""
        if not self.contiguous_gradients or torch._C._are_functorch_transforms_active():
            return False
        laid_out_otherwise = any(gradient_strides(s, True) != s.stride() for s in streams)
        return laid_out_otherwise and torch.is_grad_enabled() and not forward_mode_is_on()

    def _may_be_misread(self, streams: State) -> bool:
        """Whether a gradient, laid out otherwise than on a tape, would be taken for another."""
        if self.tapes is None or not self.contiguous_gradients:
            return False
        return any(gradient_strides(s, True) != s.stride() for s in streams)


def _inverted(
    layer: ReversibleLayer,
    where: str,
    state: State,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    watch: RangeWatch | None,
    logdet: LogDeterminant | None,
) -> State:
    """The state before `layer`, from the one after it."""
    taken = layer.num_outputs
    invert = layer.inverse
    if watch is not None:
        watch.where = where
        if not layer.is_exact:
            invert = layer.on_floats(invert, layer.num_inputs)
    try:
        if logdet is not None:
            kwargs = logdet.asked_of(layer, kwargs)
        inputs = tuple(invert(*_enough(state, taken), *args, **kwargs))
        if logdet is not None:
            logdet.add(layer, inputs[layer.num_inputs :])
    except Exception as error:
        locate(error, where)
        raise
    return inputs[: layer.num_inputs] + state[taken:]


def _are_floats(x: Tensor | State) -> bool:
    """Whether the caller works with floats, and not with fixed-point numbers."""
    return not isinstance(x if isinstance(x, Tensor) else x[0], FixedPoint)


def _split_axis(x: Tensor | State, split_dim: int) -> int | None:
    """The axis that the sequence splits, counted from the front; None for given streams."""
    return split_dim % x.dim() if isinstance(x, Tensor) else None


def _enough(state: State, count: int) -> State:
    if len(state) < count:
        raise ReversibleError(
            f"takes {count} tensors, but the state has {len(state)}; a JoinSkip needs a SplitSkip "
            "before it, and two streams are the least"
        )
    return state[:count]


def where_is(layer: nn.Module, name: str) -> str:
    """The name of a layer for messages."""
    return f"layer {name} ({type(layer).__name__})"


def _refuse_doubled_taps(sequence: ReversibleSequence) -> None:
    names = [layer.name for _, layer in sequence._named_layers() if isinstance(layer, Tap)]
    doubled = {name for name in names if names.count(name) > 1}
    if doubled:
        raise ValueError(f"two taps of a sequence have the same name: {sorted(doubled)}")


def _refuse_exact_inside(sequence: ReversibleSequence, arithmetic: str) -> None:
    """The outermost sequence decides for all, so an inner one must not ask for more."""
    for i, layer in enumerate(sequence.layers):
        if isinstance(layer, ReversibleSequence) and layer.arithmetic == "exact" != arithmetic:
            raise ValueError(
                f'layer {i} is a sequence with arithmetic="exact", but the outermost sequence '
                'decides for all that are inside: give it arithmetic="exact" and the fraction_bits'
            )
