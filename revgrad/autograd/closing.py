"""The end of a sequence: the node that stores the output, the only activation that is kept.

Tapped values leave through it too, so that in a backward pass from any of them this node comes
first and the tape is fed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from revgrad.autograd.context import evaluating
from revgrad.autograd.layout import gradient_strides, laid_out
from revgrad.autograd.outside import outside_of_compiler
from revgrad.autograd.protocol import Gradients, State
from revgrad.autograd.rewind import Rewind
from revgrad.autograd.saved import StoredStreams, saved_tensors
from revgrad.autograd.tape import Tape, aliases
from revgrad.fixed_point import FixedPoint, to_float
from revgrad.fixed_point.range_watch import raise_pending


def close(
    tape: Tape,
    join_dim: int | None,
    state: State,
    taps: State,
    *,
    floats: bool = True,
    factor: Tensor | None = None,
) -> tuple[Tensor | State, State]:
    """End a tape.

    Args:
        tape: The tape.
        join_dim: Axis along which the state is joined; None gives it back as a tuple.
        state: The streams, floats or fixed-point.
        taps: Tapped values.
        floats: Give floats back also where the streams are fixed-point.
        factor: Scalar for the output and gradient of fixed-point streams: NaN makes them invalid.

    Returns:
        The output and the tapped values.
    """
    fixed = isinstance(state[0], FixedPoint)
    node = _CloseFixed if fixed else _Close
    options = (floats, factor) if fixed else ()
    outputs: State = node.apply(tape, join_dim, len(state), *options, *state, *taps)
    if fixed:
        outputs = outputs[: -len(state)]
    cut = len(outputs) - len(taps)
    return (outputs[:cut] if join_dim is None else outputs[0]), outputs[cut:]


class _Close(torch.autograd.Function):
    """The end of float streams: stores the output that the caller gets."""

    @staticmethod
    def forward(ctx: Any, tape: Tape, join_dim: int | None, count: int, *tensors: Tensor) -> State:
        state, taps = tensors[:count], tensors[count:]
        _remember(ctx, tape, join_dim, state)
        outputs = aliases(state) if join_dim is None else (torch.cat(state, join_dim),)
        ctx.save_for_backward(*outputs)
        return *outputs, *aliases(taps)

    @staticmethod
    @outside_of_compiler
    def backward(ctx: Any, *grads: Tensor | None) -> Gradients:
        tape: Tape = ctx.tape
        saved = saved_tensors(ctx, f"the output of {tape.name}")
        if ctx.join_dim is not None:
            saved = saved[0].split(ctx.sizes, ctx.join_dim)
        # Layers write into what lies on the tape, so it is a copy.
        state = zip(saved, ctx.strides, strict=True)
        tape.put(tape.length, tuple(laid_out(s, strides, copy=True) for s, strides in state))
        return None, None, None, *_stream_grads(ctx, grads)


class _CloseFixed(torch.autograd.Function):
    """The end of fixed-point streams: stores them, and the caller gets floats.

    The streams belong to the tape alone, so no copy is made to write into.
    """

    @staticmethod
    def forward(
        ctx: Any,
        tape: Tape,
        join_dim: int | None,
        count: int,
        floats: bool,
        factor: Tensor | None,
        *tensors: Tensor,
    ) -> State:
        state, taps = aliases(tensors[:count]), tensors[count:]
        _remember(ctx, tape, join_dim, state)
        ctx.stored, ctx.factor = StoredStreams(state), factor
        # The streams are outputs, too, though nobody gets them: in a double backward pass, the
        # history of what is stored must lead through this node, which feeds the tape.
        ctx.save_for_backward(*StoredStreams.tensors(state))
        outputs = aliases(state) if join_dim is None else (torch.cat(state, join_dim),)
        return *opened(outputs, floats, factor), *opened(aliases(taps), True, factor), *state

    @staticmethod
    @outside_of_compiler
    def backward(ctx: Any, *grads: Tensor | None) -> Gradients:
        raise_pending()
        tape: Tape = ctx.tape
        torch.autograd.Variable._execution_engine.queue_callback(raise_pending)
        state = ctx.stored.restored(saved_tensors(ctx, f"the output of {tape.name}"))
        with_strides = zip(state, ctx.strides, strict=True)
        tape.put(tape.length, tuple(laid_out(s, strides) for s, strides in with_strides))
        if ctx.factor is not None:
            grads = tuple(None if g is None else g * ctx.factor.to(g.dtype) for g in grads)
        grads, hidden = grads[: -ctx.count], grads[-ctx.count :]
        found = _stream_grads(ctx, grads)
        streams = map(Rewind.add, found[: ctx.count], hidden)
        return None, None, None, None, None, *streams, *found[ctx.count :]


def opened(outputs: State, floats: bool, factor: Tensor | None) -> State:
    """Fixed-point outputs as the caller gets them."""
    if not floats:
        return outputs
    values = map(to_float, outputs)
    return tuple(v if factor is None else v * factor.to(v.dtype) for v in values)


def close_plainly(
    join_dim: int | None, state: State, taps: State, *, floats: bool, factor: Tensor | None
) -> tuple[Tensor | State, State]:
    """As `close`, by ordinary autograd, for fixed-point streams without a tape."""
    outputs = opened(state if join_dim is None else (torch.cat(state, join_dim),), floats, factor)
    return outputs if join_dim is None else outputs[0], opened(taps, True, factor)


def with_laid_out_gradients(streams: State, contiguous: bool) -> State:
    """The streams; in ordinary autograd their gradients are then laid out as on a tape.

    The strides of gradients change the bits of what is computed from them.
    """
    return tuple(_LaidOut.apply(s, contiguous) for s in streams)


class ReadableGradients:
    """Evaluates the sub-networks of a layer plainly; they get gradients that none misreads."""

    def run(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Evaluate `module`."""
        with evaluating(None):
            value = module(*args, **kwargs)
        if isinstance(value, Tensor) and value.requires_grad:
            return with_laid_out_gradients((value,), True)[0]
        return value

    def run_onto(self, module: nn.Module, stream: Tensor, x: Tensor) -> Tensor | None:
        """Ordinary autograd needs the value."""
        return None


class _LaidOut(torch.autograd.Function):
    """The identity; its gradient is laid out as sub-networks shall get it."""

    @staticmethod
    def forward(ctx: Any, stream: Tensor, contiguous: bool) -> Tensor:
        ctx.strides = gradient_strides(stream, contiguous)
        return aliases((stream,))[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        return laid_out(grad, ctx.strides), None


def _remember(ctx: Any, tape: Tape, join_dim: int | None, state: State) -> None:
    """What the backward pass needs to know of the streams."""
    ctx.tape, ctx.join_dim, ctx.count = tape, join_dim, len(state)
    ctx.sizes = None if join_dim is None else [s.shape[join_dim] for s in state]
    ctx.strides = [s.stride() for s in state]
    ctx.gradient_strides = [gradient_strides(s, tape.contiguous_gradients) for s in state]
    ctx.dtypes = [s.dtype for s in state]
    ctx.set_materialize_grads(False)


def _stream_grads(ctx: Any, grads: Gradients) -> Gradients:
    """Gradients of the streams, of their type and laid out like them, and of tapped values."""
    outputs, tap_grads = grads[: ctx.count], grads[ctx.count :]
    if ctx.join_dim is not None:
        joined, tap_grads = grads[0], grads[1:]
        outputs = (None,) * ctx.count
        if joined is not None:
            outputs = joined.split(ctx.sizes, ctx.join_dim)
    streams = zip(outputs, ctx.gradient_strides, ctx.dtypes, strict=True)
    laid = (None if g is None else laid_out(g.to(dtype), s) for g, s, dtype in streams)
    return *laid, *tap_grads
