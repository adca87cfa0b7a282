"""The reversible sequence: the module that a user wraps a network in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from revgrad.autograd.context import calling, evaluating, take_place
from revgrad.autograd.layout import dense, dense_format, split_dense
from revgrad.autograd.protocol import State
from revgrad.autograd.tape import Identities, Tape, close, expect_unchanged, identities
from revgrad.errors import ReversibleError, locate
from revgrad.nn.layer import ReversibleLayer
from revgrad.nn.tap import Tap


class ReversibleSequence(nn.Module):
    """A sequence of reversible layers that trains without storing their activations.

    The backward pass computes each layer's input back from its output, so that memory does not
    grow with depth. Gradients are those of ordinary autograd, up to the rounding of computing
    back. ::

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

    Shapes:
        x: (N, C, ...) or a tuple of streams. The output has the shape that the layers give.

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
    ) -> None:
        super().__init__()
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
        _refuse_doubled_taps(self)
        self.split_dim = split_dim
        self.anchor_every = anchor_every
        self.save_memory = save_memory

    def forward(self, x: Tensor | State, *args: Any, **kwargs: Any) -> Any:
        """Run the layers.

        Args:
            x: A tensor to be split into two streams, or the streams as a tuple.
            *args: Side inputs, handed to every sub-network. Tensors in them, at any depth of
                tuples, lists and dictionaries, get their gradients.
            **kwargs: Side inputs by keyword.

        Returns:
            The output, joined if `x` was one tensor. If the sequence has taps: the output and a
            dictionary of the tapped values.
        """
        passage: _Passage | None = take_place(self)
        if passage is not None:
            return self._pass(passage, x, args, kwargs)
        state = self._open(x)
        passage = _Passage(Tape(self._label()) if self._can_save(state, args, kwargs) else None)
        with evaluating(None):
            state = self._pass(passage, state, args, kwargs)
        output = self._close(passage, state, joined=isinstance(x, Tensor))
        return (output, passage.taps) if self._has_taps() else output

    def inverse(self, y: Tensor | State, *args: Any, **kwargs: Any) -> Any:
        """Compute the input from the output, by ordinary autograd where gradients are needed.

        Args:
            y: The output of `forward`, without tapped values.
            *args: The side inputs of `forward`.
            **kwargs: The same by keyword.
        """
        state = self._open(y, inverse=True)
        for name, layer in reversed(list(self._named_layers())):
            taken = layer.num_outputs
            try:
                inputs = layer.inverse(*_enough(state, taken), *args, **kwargs)
            except Exception as error:
                locate(error, _where(layer, name))
                raise
            state = tuple(inputs) + state[taken:]
        return torch.cat(state, self.split_dim) if isinstance(y, Tensor) else state

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int) -> nn.Module:
        return self.layers[index]

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.layers)

    def extra_repr(self) -> str:
        return (
            f"split_dim={self.split_dim}, anchor_every={self.anchor_every}, "
            f"save_memory={self.save_memory}"
        )

    # --- inside -------------------------------------------------------------------------------

    def _open(self, x: Tensor | State, inverse: bool = False) -> State:
        """Make dense streams of the input."""
        if isinstance(x, Tensor):
            x = _at_least_float32(x)
            return tuple(split_dense(x, self._stream_sizes(x, inverse), self.split_dim))
        if not isinstance(x, tuple | list) or not all(isinstance(t, Tensor) for t in x):
            raise TypeError(f"expected a tensor or a tuple of streams, not {type(x).__name__}")
        return tuple(dense(t, dense_format(t)) for t in map(_at_least_float32, x))

    def _stream_sizes(self, x: Tensor, inverse: bool) -> tuple[int, ...]:
        """How a joined tensor is split."""
        if not -x.dim() <= self.split_dim < x.dim():
            raise ReversibleError(
                f"an input of shape {tuple(x.shape)} has no axis {self.split_dim} to be split along"
            )
        total = x.shape[self.split_dim]
        if total < 2:
            raise ReversibleError(
                f"an axis of {total} can't be split into two streams; split_dim="
                f"{self.split_dim} must have at least 2 entries"
            )
        if not inverse:
            return (total + 1) // 2, total // 2
        if self.split_dim % x.dim() != 1:
            if total % 2:
                raise ReversibleError(
                    f"how {total} entries of axis {self.split_dim} were split is not known; give "
                    "the streams to inverse as a tuple"
                )
            return total // 2, total // 2
        return self._output_sizes(total)

    def _output_sizes(self, total: int) -> tuple[int, ...]:
        """The channels of the two output streams that have `total` together.

        The layers may change the number of channels, so it takes the input that gives `total`.
        """
        channels = total * 128 // sum(self._out_channels((64, 64)))
        for guess in (channels, channels + 1):
            sizes = self._out_channels(((guess + 1) // 2, guess // 2))
            if sum(sizes) == total and len(sizes) == 2:
                return sizes
        raise ReversibleError(
            f"no input of this sequence has an output with {total} channels in two streams; "
            "give the streams to inverse as a tuple"
        )

    def _out_channels(self, channels: tuple[int, ...]) -> tuple[int, ...]:
        for _, layer in self._named_layers():
            taken = layer.num_inputs
            channels = layer.out_channels(channels[:taken]) + channels[taken:]
        return channels

    def _can_save(self, state: State, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether there is a backward pass to save memory for, and the tape can serve it."""
        if not self.save_memory or not torch.is_grad_enabled():
            return False
        if torch._C._are_functorch_transforms_active() or _forward_mode_is_on():
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
        if passage.tape is not None:
            passage.entered = identities(state)
        for i, layer in enumerate(self.layers):
            if isinstance(layer, ReversibleSequence):
                state = self._pass_inner(layer, passage.inside(i), state, args, kwargs)
                continue
            assert isinstance(layer, ReversibleLayer)
            where = _where(layer, f"{passage.prefix}{i}")
            try:
                _enough(state, layer.num_inputs)
                state, extra = passage.run(layer, where, state, args, kwargs, self._anchors(i))
            except Exception as error:
                locate(error, where)
                raise
            if isinstance(layer, Tap):
                passage.taps[layer.name] = extra[0]
        if passage.tape is not None:
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
        if passage.tape is not None:
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

    def _close(self, passage: _Passage, state: State, joined: bool) -> Tensor | State:
        if joined and len(state) != 2:
            raise ReversibleError(
                f"the sequence ends with {len(state)} tensors in its state: a SplitSkip lacks its "
                "JoinSkip. Join it, or give the input as a tuple of streams to get a tuple back"
            )
        dim = self.split_dim if joined else None
        if passage.tape is None:
            return state if dim is None else torch.cat(state, dim)
        output, values = close(passage.tape, dim, state, tuple(passage.taps.values()))
        passage.taps = dict(zip(passage.taps, values, strict=True))
        return output

    def _named_layers(self, prefix: str = "") -> Iterator[tuple[str, ReversibleLayer]]:
        """The layers, those of inner sequences in their place."""
        for i, layer in enumerate(self.layers):
            if isinstance(layer, ReversibleSequence):
                yield from layer._named_layers(f"{prefix}{i}.")
            elif isinstance(layer, ReversibleLayer):
                yield f"{prefix}{i}", layer

    def _has_taps(self) -> bool:
        return any(isinstance(layer, Tap) for _, layer in self._named_layers())

    def _label(self) -> str:
        return f"{type(self).__name__} of {len(self)} layers"


@dataclass
class _Passage:
    """One run through a sequence and the sequences inside it."""

    tape: Tape | None
    taps: dict[str, Tensor] = field(default_factory=dict)
    prefix: str = ""
    entered: Identities | None = None
    left: Identities | None = None

    def inside(self, i: int) -> _Passage:
        """The same passage inside the sequence that is layer `i`."""
        return _Passage(self.tape, self.taps, f"{self.prefix}{i}.")

    def run(
        self,
        layer: ReversibleLayer,
        where: str,
        state: State,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        anchor: bool,
    ) -> tuple[State, State]:
        """The state after `layer`, and what it gave besides."""
        if self.tape is not None:
            anchor = anchor or (isinstance(layer, Tap) and layer.head is None)
            return self.tape.run(layer, where, state, args, kwargs, anchor)
        outputs = layer(*state[: layer.num_inputs], *args, **kwargs)
        count = layer.num_outputs
        return tuple(outputs[:count]) + state[layer.num_inputs :], tuple(outputs[count:])


def _enough(state: State, count: int) -> State:
    if len(state) < count:
        raise ReversibleError(
            f"takes {count} tensors, but the state has {len(state)}; a JoinSkip needs a SplitSkip "
            "before it, and two streams are the least"
        )
    return state[:count]


def _where(layer: nn.Module, name: str) -> str:
    return f"layer {name} ({type(layer).__name__})"


def _at_least_float32(x: Tensor) -> Tensor:
    half = x.dtype in (torch.float16, torch.bfloat16)
    return x.float() if half and torch.is_autocast_enabled(x.device.type) else x


def _forward_mode_is_on() -> bool:
    return torch.autograd.forward_ad._current_level >= 0


def _refuse_doubled_taps(sequence: ReversibleSequence) -> None:
    names = [layer.name for _, layer in sequence._named_layers() if isinstance(layer, Tap)]
    doubled = {name for name in names if names.count(name) > 1}
    if doubled:
        raise ValueError(f"two taps of a sequence have the same name: {sorted(doubled)}")
