"""The tape: hands each reversible layer its output in the backward pass, and takes its input.

Every layer of a memory-saving sequence is one node of the autograd graph (`_Step`), and none of
them stores an activation. Only the last node (`_Close`) keeps the sequence's output. In the
backward pass it lays that output on the tape; each layer takes its output from there, computes
its gradients and its input, and lays the input down for the layer before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from revgrad.autograd.context import calling
from revgrad.autograd.layout import alias, dense, dense_format, laid_out
from revgrad.autograd.protocol import Gradients, Layer, State
from revgrad.autograd.recompute import lock_of, version
from revgrad.autograd.record import Record, SideInputs
from revgrad.autograd.rewind import Rewind
from revgrad.errors import ReversibleError, locate

Identities = list[tuple[int, int]]


class Tape:
    """What the layers of one forward pass of a sequence share.

    The state between two layers is a tuple of tensors with the streams first: a layer takes as
    many from the front as it needs and puts its results there. Behind them wait the skip tensors.

    Args:
        name: Name of the sequence, for messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.length = 0
        self._states: dict[int, dict[int, State]] = {}

    def put(self, boundary: int, state: State) -> None:
        """Lay down the state after the first `boundary` layers, for the running backward pass."""
        task = torch._C._current_graph_task_id()
        if task not in self._states:
            self._states[task] = {}
            # A backward pass for a part of the graph leaves a state that no layer takes.
            torch.autograd.Variable._execution_engine.queue_callback(lambda: self.clear(task))
        self._states[task][boundary] = state

    def take(self, boundary: int) -> State:
        """Take the state after the first `boundary` layers from the tape."""
        return self._states[torch._C._current_graph_task_id()].pop(boundary)

    def clear(self, task: int | None = None) -> None:
        """Forget what one backward pass laid down (by default the running one)."""
        self._states.pop(torch._C._current_graph_task_id() if task is None else task, None)

    def run(
        self,
        layer: Layer,
        where: str,
        state: State,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        anchor: bool,
    ) -> tuple[State, State]:
        """Append a layer: run it on the state as one node of the graph.

        Args:
            layer: The layer.
            where: Its name, for messages.
            state: The state before it.
            args: Side inputs of the layer's sub-networks.
            kwargs: The same by keyword.
            anchor: Whether to store the layer's output, so that the tape starts from it anew.

        Returns:
            The state after the layer, and what the layer gave besides (a tapped value).
        """
        run = _LayerRun(self, layer, where, anchor)
        streams, rest = state[: layer.num_inputs], state[layer.num_inputs :]
        with calling(layer, run):
            outputs = layer(*streams, *args, **kwargs)
        run.check(streams, outputs)
        count = layer.num_outputs
        return outputs[:count] + rest, outputs[count:]

    def append(self) -> int:
        """Number of the boundary behind a new node."""
        self.length += 1
        return self.length


class _LayerRun:
    """One call of a layer by a sequence: makes a node of each of the layer's parts."""

    def __init__(self, tape: Tape, layer: Layer, where: str, anchor: bool) -> None:
        self.tape = tape
        self.layer = layer
        self.where = where
        self.anchor = anchor
        self.inputs: Identities | None = None
        self.outputs: Identities | None = None

    def enter(
        self, forward: Callable[..., State], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> State:
        """Called by the layer in place of its `forward`."""
        count = self.layer.num_inputs
        streams, args = args[:count], args[count:]
        side, side_tensors = SideInputs(args, kwargs), SideInputs.tensors(args, kwargs)
        self.inputs = identities(streams)
        parts = self.layer.parts(forward)
        for part in parts:
            record = Record(self.layer, part, side, streams)
            anchor = self.anchor and part is parts[-1]
            node = _Node(self.tape, self.tape.append(), self.where, record, anchor)
            with lock_of(part.module):
                inputs = (*streams, *side_tensors, *record.collect_parameters())
                streams = _Step.apply(node, len(streams), *inputs)
        self.outputs = identities(streams)
        outputs: State = streams
        return outputs

    def check(self, streams: State, outputs: object) -> None:
        """Refuse hooks on the layer that changed its streams: they can't be computed back."""
        if self.inputs is None:
            raise ReversibleError(
                "the layer's forward was replaced on the object itself, so the sequence can't "
                "record it; define forward in the class"
            )
        expect_unchanged(streams, self.inputs, "input of this reversible layer")
        expect_unchanged(outputs, self.outputs, "output of this reversible layer")


def expect_unchanged(tensors: object, before: Identities | None, what: str) -> None:
    """Raise if tensors are not the ones, or not as, `identities` found them."""
    if identities(tensors) != before:
        raise ReversibleError(
            f"a forward hook changed the {what}, which can then not be computed back; put the "
            "change into a sub-network or a layer"
        )


def identities(tensors: object) -> Identities:
    """What shows whether tensors were replaced or written into."""
    return [(t.data_ptr(), version(t)) for t in tensors if isinstance(t, Tensor)]  # type: ignore[attr-defined]


@dataclass(frozen=True)
class _Node:
    """A node's place on its tape, behind `boundary` - 1 others, and what it is to do."""

    tape: Tape
    boundary: int
    where: str
    record: Record
    anchor: bool


def _aliases(tensors: State) -> State:
    """For results of a node, which autograd would pass through `view_as` if they are its inputs."""
    return tuple(map(alias, tensors))


class _Step(torch.autograd.Function):
    """A part of a reversible layer.

    Inputs are its record, its streams, the side tensors of its sub-networks and its parameters.
    """

    @staticmethod
    def forward(ctx: Any, node: _Node, count: int, *tensors: Tensor) -> State:
        streams, others = tensors[:count], tensors[count:]
        args, kwargs = node.record.side.with_tensors(others)
        outputs = _aliases(node.record.run_forward(*streams, args=args, kwargs=kwargs))
        kept = node.record.layer.anchor(outputs) if node.anchor else ()
        ctx.node, ctx.count, ctx.num_kept = node, count, len(kept)
        ctx.save_for_backward(*others, *kept)
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Gradients:
        node: _Node = ctx.node
        try:
            return _step_back(ctx, node, grads)
        except BaseException as error:
            node.tape.clear()
            locate(error, node.where)
            raise


def _step_back(ctx: Any, node: _Node, grads: Gradients) -> Gradients:
    """Compute a node's input and gradients from its output and the output's gradients."""
    record, layer = node.record, node.record.layer
    state = node.tape.take(node.boundary)
    streams, rest = state[: layer.num_outputs], state[layer.num_outputs :]
    others, kept = _unpack(ctx)
    if node.anchor:
        stored = layer.from_anchor(kept, streams)
        streams = tuple(laid_out(s, x.stride()) for s, x in zip(stored, streams, strict=True))
    del state, kept
    needs = ctx.needs_input_grad[2:]
    needs_streams, needs_others = needs[: ctx.count], needs[ctx.count :]
    rewind = Rewind(record, others, needs_others)
    with lock_of(record.part.module):
        inputs, input_grads = rewind.run(streams, grads)
    if node.boundary > 1 and any(needs_streams):
        # As the layer before gave it, so that its sub-networks see the same strides again.
        before = (laid_out(x, strides) for x, strides in zip(inputs, record.strides, strict=True))
        node.tape.put(node.boundary - 1, (*before, *rest))
    wanted = (g if need else None for g, need in zip(input_grads, needs_streams, strict=True))
    return None, None, *wanted, *rewind.leaf_grads()


def _unpack(ctx: Any) -> tuple[State, State]:
    """The side tensors and parameters, and the stored outputs of an anchor."""
    saved = _saved_tensors(ctx, "a parameter, a side input or a tapped value of it")
    cut = len(saved) - ctx.num_kept
    return saved[:cut], saved[cut:]


def _saved_tensors(ctx: Any, what: str) -> State:
    """What a node stored; `what` names it if it was changed since."""
    try:
        saved: State = ctx.saved_tensors
        return saved
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise ReversibleError(
            f"{what} was changed in place between the forward and the backward pass. The backward "
            "pass computes activations from it, so change it after backward, or make a new "
            f"tensor (x = x + 1 instead of x += 1). PyTorch says: {error}"
        ) from error


class _Close(torch.autograd.Function):
    """The end of a sequence: stores the output, the only activation that is kept.

    Tapped values leave through it too, so that in a backward pass from any of them this node
    comes first and the tape is fed.
    """

    @staticmethod
    def forward(ctx: Any, tape: Tape, join_dim: int | None, count: int, *tensors: Tensor) -> State:
        state, taps = tensors[:count], tensors[count:]
        ctx.tape, ctx.join_dim, ctx.count = tape, join_dim, count
        ctx.sizes = None if join_dim is None else [s.shape[join_dim] for s in state]
        ctx.strides = [s.stride() for s in state]
        ctx.formats = [dense_format(s) for s in state]
        outputs = _aliases(state) if join_dim is None else (torch.cat(state, join_dim),)
        ctx.save_for_backward(*outputs)
        ctx.set_materialize_grads(False)
        return *outputs, *_aliases(taps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        tape: Tape = ctx.tape
        saved = _saved_tensors(ctx, f"the output of {tape.name}")
        outputs, tap_grads = grads[: len(saved)], grads[len(saved) :]
        if ctx.join_dim is not None:
            (joined,), (joined_grad,) = saved, outputs
            saved = joined.split(ctx.sizes, ctx.join_dim)
            outputs = (None,) * ctx.count
            if joined_grad is not None:
                outputs = joined_grad.split(ctx.sizes, ctx.join_dim)
        # Layers write into what lies on the tape, so it is a copy.
        state = zip(saved, ctx.strides, strict=True)
        tape.put(tape.length, tuple(laid_out(s, strides, copy=True) for s, strides in state))
        gradients = zip(outputs, ctx.formats, strict=True)
        dense_grads = (None if g is None else dense(g, f) for g, f in gradients)
        return None, None, None, *dense_grads, *tap_grads


def close(
    tape: Tape, join_dim: int | None, state: State, taps: State
) -> tuple[Tensor | State, State]:
    """End a tape: join the state along `join_dim`, or give it back as a tuple if that is None."""
    outputs: State = _Close.apply(tape, join_dim, len(state), *state, *taps)
    cut = len(outputs) - len(taps)
    return (outputs[:cut] if join_dim is None else outputs[0]), outputs[cut:]
