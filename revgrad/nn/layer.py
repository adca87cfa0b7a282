"""The protocol of a reversible layer: what `ReversibleSequence` asks of its layers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from revgrad.autograd.context import current_evaluator, take_place
from revgrad.autograd.observers import current_check
from revgrad.autograd.protocol import Gradients, Part, State
from revgrad.autograd.recompute import version
from revgrad.autograd.record import SideInputs
from revgrad.autograd.rewind import Rewind
from revgrad.errors import ReversibleError
from revgrad.fixed_point import FixedPoint, to_fixed, to_float


class ReversibleLayer(nn.Module):
    """A layer whose input can be computed from its output.

    A subclass gives `forward` and `inverse`. Both take the layer's streams as separate tensors
    (two, unless `num_inputs` and `num_outputs` say otherwise) and then the side inputs of its
    sub-networks, and return the streams as a tuple::

        class ScaledCoupling(revgrad.nn.ReversibleLayer):
            def __init__(self, f):
                super().__init__()
                self.f = f

            def forward(self, x1, x2, *args):
                return x1 + 0.5 * self.run(self.f, x2, *args), x2

            def inverse(self, y1, y2, *args):
                return y1 - 0.5 * self.run(self.f, y2, *args), y2

    That is enough to stand in a `ReversibleSequence`. A subclass may also give `backward_step`,
    which computes the input and the gradients in one go and so evaluates each sub-network once
    instead of twice in the backward pass.

    Called by itself, a layer is an ordinary module that autograd differentiates.

    Attributes:
        num_inputs: Number of tensors that the layer takes from the front of the state.
        num_outputs: Number of tensors that it puts back.
        exact: True in a class whose `forward` and `inverse` consist of sums and differences with
            values of `run` and of what only moves numbers. In exact arithmetic its input is then
            computed back to the bit; that of any other layer is stored.
        volume_preserving: True in a class whose `forward` has a Jacobian of determinant 1 or -1:
            its log-determinant is zero.
        gives_logdet: True in a class whose `forward` and `inverse` take the keyword `logdet` and
            return, if it is true, after the streams the logarithm of the absolute value of the
            determinant of their own Jacobian, by sample: (N,), float32 at least.
    """

    num_inputs: int = 2
    num_outputs: int = 2
    exact: bool = False
    volume_preserving: bool = False
    gives_logdet: bool = False
    _formulas: tuple[str, ...] = ("forward", "inverse")  # methods that say what is computed

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not hasattr(cls.forward, "_with_place"):  # it may come from a mixin
            cls.forward = _with_place(cls.forward)  # type: ignore[method-assign]

    def forward(self, *streams: Any, **kwargs: Any) -> State:
        """Map the input streams to the output streams; a subclass defines it."""
        raise ReversibleError(f"{type(self).__name__} defines no forward")

    def inverse(self, *streams: Any, **kwargs: Any) -> State:
        """Map the output streams back to the input streams; a subclass defines it."""
        raise ReversibleError(
            f"{type(self).__name__} has no inverse; a reversible layer defines forward and inverse"
        )

    def backward_step(
        self, rewind: Rewind, outputs: State, grads: Gradients, *args: Any, **kwargs: Any
    ) -> tuple[State, Gradients]:
        """Compute the layer's inputs from its outputs, and the gradients on the way.

        A subclass may define it. Without it the layer is inverted and then run forward again.
        Parameters and side inputs are those of the forward pass; their gradients are booked by
        `rewind`.

        Args:
            rewind: Evaluates sub-networks again, see `revgrad.autograd.Rewind`.
            outputs: The output streams. They belong to the tape and may be written into.
            grads: Their gradients; None where there is none. Not to be written into. After the
                streams' gradients come those of further outputs of the layer.
            *args: Side inputs.
            **kwargs: Side inputs by keyword.

        Returns:
            The input streams, and their gradients (None where there is none).
        """
        raise ReversibleError(f"{type(self).__name__} defines no backward_step")

    def parts(self, forward: Callable[..., State]) -> tuple[Part, ...]:
        """The pieces that become nodes of the graph, in the order of the forward pass.

        Args:
            forward: The layer's `forward`, to be called without `self`.
        """
        own = self._belongs("backward_step") and (
            type(self).backward_step is not ReversibleLayer.backward_step
        )
        return (Part(self, forward, self.backward_step if own else None),)

    def prepare(self, *streams: Any) -> None:
        """Called before each forward pass, but not before its repetition, with the input streams.

        The place for what shall happen once, before the tape takes note of the parameters.
        """

    def _belongs(self, method: str, formulas: Sequence[str] = ()) -> bool:
        """Whether `method` was written for this class's `forward` and `inverse`, or for others.

        A subclass that overrides these but not the step back gets the generic step.

        Args:
            method: Its name.
            formulas: The methods that it goes with, if not with all of `_formulas`.
        """

        def depth(name: str) -> int:
            return next(i for i, c in enumerate(type(self).__mro__) if name in c.__dict__)

        return depth(method) <= min(map(depth, formulas or self._formulas))

    @property
    def is_exact(self) -> bool:
        """Whether `exact` was said of this class's `forward` and `inverse`, or of others."""
        return self.exact and self._belongs("exact")

    @property
    def preserves_volume(self) -> bool:
        """Whether `volume_preserving` was said of this class's `forward`, or of another."""
        return self.volume_preserving and self._belongs("volume_preserving")

    @property
    def knows_logdet(self) -> bool:
        """Whether `forward` and `inverse` give a log-determinant."""
        return self.gives_logdet and self._belongs("gives_logdet")

    def on_floats(self, function: Callable[..., State], count: int) -> Callable[..., State]:
        """`forward` or `inverse` for fixed-point streams, computed on floats.

        Args:
            function: Which of them.
            count: How many streams it gives. They are rounded to the grid again.
        """

        @functools.wraps(function)
        def rounded(*args: Any, **kwargs: Any) -> State:
            grid = next(a.grid for a in args if isinstance(a, FixedPoint))
            outputs = function(*map(to_float, args), **kwargs)
            streams = (to_fixed(s, grid, "the layer's output") for s in outputs[:count])
            return *streams, *outputs[count:]

        return rounded

    def sub_networks(self) -> list[nn.Module]:
        """The modules that the layer evaluates through `run`: by default all inside it."""
        return [
            inner
            for child in self.children()
            for inner in (child if isinstance(child, nn.ModuleList) else [child])
        ]

    def anchor(self, outputs: State) -> State:
        """The tensors to store where the tape shall start anew after this layer.

        Args:
            outputs: All that `forward` returned.
        """
        return outputs[: self.num_outputs]

    def from_anchor(self, stored: State, streams: State) -> State:
        """New tensors with the output streams, from what `anchor` gave.

        Args:
            stored: The stored tensors.
            streams: The streams as computed back, which the stored ones replace.
        """
        return tuple(s.clone() for s in stored)

    def out_channels(self, channels: tuple[int, ...]) -> tuple[int, ...]:
        """Number of channels of each output stream, from that of each input stream.

        A sequence needs it to split a joined tensor where its inverse has to. The default is the
        identity.
        """
        return channels

    def run(self, module: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Evaluate a sub-network of this layer.

        Use it instead of calling the module: inside a memory-saving sequence it remembers the
        random numbers, autocast, train or eval mode and buffers of the forward pass and brings
        them back in the backward pass.

        Args:
            module: The sub-network, a sub-module of this layer.
            x: Its input.
            *args: Side inputs.
            **kwargs: Side inputs by keyword.
        """
        # The same floats in both passes: nothing is rounded on the way back to the stream but the
        # value. A stream of floats is handed over as it is.
        seen = to_float(x)
        before = version(seen)
        evaluator = current_evaluator()
        if evaluator is None:
            value = module(seen, *args, **kwargs)
        else:
            sides = SideInputs.tensors(args, kwargs)
            as_given = [version(t) for t in sides]
            value = evaluator.run(module, (seen, *args), kwargs)
            _expect_sides_unchanged(module, sides, as_given)
        _expect_unchanged(module, seen, before)
        if not isinstance(value, Tensor):
            raise ReversibleError(
                f"the sub-network {type(module).__name__} returned {type(value).__name__}; "
                "it must return one tensor"
            )
        if not isinstance(x, FixedPoint):
            return value
        return to_fixed(value, x.grid, f"the value of the sub-network {type(module).__name__}")

    def run_onto(
        self, stream: Tensor, module: nn.Module, x: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor | None:
        """`stream + run(module, x)` in one pass over memory; None if that can't be.

        It can in the forward pass of a memory-saving sequence, where the sub-network ends with a
        fused operator such as `NormAct`. The `backward_step` then takes it back by
        `rewind.undo_sum`. The bits are those of two steps.
        """
        evaluator = current_evaluator()
        own_run = type(self).run is not ReversibleLayer.run or "run" in self.__dict__
        if evaluator is None or own_run or args or kwargs:
            return None
        seen = to_float(x)
        before = version(seen)
        result = evaluator.run_onto(module, stream, seen)
        _expect_unchanged(module, seen, before)
        return result


def _expect_unchanged(module: nn.Module, x: Tensor, before: int) -> None:
    if version(x) != before:
        raise ReversibleError(
            f"the sub-network {type(module).__name__} changed its input in place, and with it "
            "the stream that the layer passes on; make its first operation out-of-place "
            "(ReLU() instead of ReLU(inplace=True))"
        )


def _expect_sides_unchanged(module: nn.Module, sides: list[Tensor], before: list[int]) -> None:
    if [version(t) for t in sides] != before:
        raise ReversibleError(
            f"the sub-network {type(module).__name__} changed a side input in place, so that the "
            "backward pass could not evaluate it again on the same values; make that operation "
            "out-of-place (x = x + 1 instead of x += 1)"
        )


def _with_place(forward: Callable[..., State]) -> Callable[..., State]:
    """Make a layer's `forward` become a node of the tape when a memory-saving sequence calls it."""

    @functools.wraps(forward)
    def placed(self: ReversibleLayer, *args: Any, **kwargs: Any) -> State:
        place = take_place(self)
        self.prepare(*args[: self.num_inputs])
        call = functools.partial(forward, self)
        if place is not None:
            outputs: State = place.enter(call, args, kwargs)
            return outputs
        if not self.is_exact and any(isinstance(a, FixedPoint) for a in args):
            call = self.on_floats(call, self.num_outputs)  # type: ignore[assignment]
        return call(*args, **kwargs)

    placed._with_place = True  # type: ignore[attr-defined]
    return placed


class IsometricLayer(ReversibleLayer):
    """A linear layer without parameters whose inverse is its transpose.

    Its gradient takes the way of its inverse. For any other layer that gradient is wrong: one that
    scales by 2 would hand on a quarter of it. Under `revgrad.check_reconstruction` a layer that
    does not keep the Euclidean norm of its streams raises a `ReversibleError`.
    """

    @property
    def preserves_volume(self) -> bool:
        """Always: the inverse is the transpose."""
        return True

    def backward_step(
        self, rewind: Rewind, outputs: State, grads: Gradients, *args: Any, **kwargs: Any
    ) -> tuple[State, Gradients]:
        """Invert the streams, and their gradients alike."""
        filled = rewind.filled(outputs, grads)
        # Twice differentiable and traced code is not looked into.
        checked = not rewind.differentiable and current_check() is not None
        norm = _norm(outputs) if checked else None
        inputs = self.inverse(*outputs)
        if norm is not None:
            _expect_same_norm(norm, inputs)
        del outputs  # not to be held while the gradients are inverted
        if filled is None:
            return inputs, (None,) * len(inputs)
        return inputs, self.inverse_of_gradients(*filled)

    def inverse_of_gradients(self, *grads: Tensor) -> State:
        """As `inverse`, for gradients, which may be views: nobody writes into them."""
        return self.inverse(*grads)

    def parts(self, forward: Callable[..., State]) -> tuple[Part, ...]:
        """One node; the step back fits any `forward` and `inverse` that are transposes."""
        return (Part(self, forward, self.backward_step),)


def _norm(streams: State) -> Tensor:
    """The Euclidean norm of all streams together."""
    floats = [to_float(s).detach() for s in streams]
    wide = torch.promote_types(floats[0].dtype, torch.float32)
    return torch.stack([torch.linalg.vector_norm(s, dtype=wide) for s in floats]).norm()


def _expect_same_norm(norm: Tensor, inputs: State) -> None:
    before = _norm(inputs)
    rounding = torch.finfo(to_float(inputs[0]).dtype).eps ** 0.5
    if (before - norm).abs() > rounding * torch.maximum(before, norm):
        raise ReversibleError(
            f"the input has the norm {before:.4g}, the output {norm:.4g}: the layer's inverse is "
            "not its transpose, so that its gradient is wrong. Make it a ReversibleLayer, or "
            "scale it to keep the norm"
        )
