"""The tape: hands each reversible layer its output in the backward pass, and takes its input.

Every layer of a memory-saving sequence is one node of the autograd graph (`_Step`), and none of
them stores an activation. Only the last node (see `closing`) keeps the sequence's output. In the
backward pass it lays that output on the tape; each layer takes its output from there, computes
its gradients and its input, and lays the input down for the layer before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from revgrad.autograd.context import calling
from revgrad.autograd.inventory import has_hooks
from revgrad.autograd.layout import alias, laid_out, memory_of
from revgrad.autograd.observers import announce_stored, current_check
from revgrad.autograd.outside import outside_of_compiler
from revgrad.autograd.protocol import Gradients, Layer, Part, State
from revgrad.autograd.recompute import lock_of, version
from revgrad.autograd.record import Record, SideInputs, check_fixed
from revgrad.autograd.rewind import Rewind
from revgrad.autograd.saved import StoredStreams, behind, saved_tensors
from revgrad.dataless import has_data
from revgrad.errors import ReversibleError, locate
from revgrad.fixed_point import FixedPoint

Identities = list[tuple[int, int]]


class Tape:
    """What the layers of one forward pass of a sequence share.

    The state between two layers is a tuple of tensors with the streams first: a layer takes as
    many from the front as it needs and puts its results there. Behind them wait the skip tensors.

    Args:
        name: Name of the sequence, for messages.
        contiguous_gradients: Whether gradients have to be contiguous, see `gradient_strides`.
    """

    def __init__(self, name: str, contiguous_gradients: bool) -> None:
        self.name = name
        self.contiguous_gradients = contiguous_gradients
        self.length = 0
        self.storing: set[int] = set()  # boundaries behind nodes that store their input
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
        states = self._states.get(torch._C._current_graph_task_id(), {})
        if boundary not in states:
            raise ReversibleError(
                "the backward pass reached this layer, but not the end of its sequence, from where "
                "activations are computed back. To use what flows between two layers, put a Tap "
                "there"
            )
        return states.pop(boundary)

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
        recompute: bool = False,
    ) -> tuple[State, State]:
        """Append a layer: run it on the state as one node of the graph.

        Args:
            layer: The layer.
            where: Its name, for messages.
            state: The state before it.
            args: Side inputs of the layer's sub-networks.
            kwargs: The same by keyword.
            anchor: Whether to store the layer's output, so that the tape starts from it anew.
            recompute: Whether to store the layer's input instead of computing it back.

        Returns:
            The state after the layer, and what the layer gave besides (a tapped value).
        """
        run = _LayerRun(self, layer, where, anchor, recompute)
        streams, rest = state[: layer.num_inputs], state[layer.num_inputs :]
        with calling(layer, run):
            outputs = layer(*streams, *args, **kwargs)
        run.check(streams, outputs)
        count = layer.num_outputs
        return outputs[:count] + rest, outputs[count:]

    def append(self, stores_input: bool) -> int:
        """Number of the boundary behind a new node."""
        self.length += 1
        if stores_input:
            self.storing.add(self.length)
        return self.length


class _LayerRun:
    """One call of a layer by a sequence: makes a node of each of the layer's parts."""

    def __init__(self, tape: Tape, layer: Layer, where: str, anchor: bool, recompute: bool) -> None:
        self.tape = tape
        self.recompute = recompute
        self.layer = layer
        self.where = where
        self.anchor = anchor
        self.entered = False
        # Without hooks there is nobody who could change streams between sequence and node.
        self.watched = has_hooks(layer)  # type: ignore[arg-type]
        self.inputs: Identities | None = None
        self.outputs: Identities | None = None

    def enter(
        self, forward: Callable[..., State], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> State:
        """Called by the layer in place of its `forward`."""
        count = self.layer.num_inputs
        streams, args = args[:count], args[count:]
        side, side_tensors = SideInputs(args, kwargs), SideInputs.tensors(args, kwargs)
        self.entered = True
        if self.watched:
            self.inputs = identities(streams)
        parts = self._parts(forward, streams)
        further: State = ()
        for part in parts:
            record = Record(self.layer, part, side, streams, self.tape.contiguous_gradients)
            anchor = self.anchor and part is parts[-1] and not part.stores_input
            boundary = self.tape.append(part.stores_input)
            node = _Node(self.tape, boundary, self.where, record, anchor)
            with lock_of(part.module):
                inputs = (*streams, *side_tensors, *record.collect_parameters())
                streams = _Step.apply(node, len(streams), *inputs)
            # Of several parts only log-determinants come besides the streams.
            streams, again = self._cut(streams)
            further = tuple(map(torch.add, further, again)) if further else again
        outputs: State = *streams, *further
        if self.watched:
            self.outputs = identities(outputs)
        return outputs

    def _cut(self, outputs: State) -> tuple[State, State]:
        return outputs[: self.layer.num_outputs], outputs[self.layer.num_outputs :]

    def _parts(self, forward: Callable[..., State], streams: State) -> tuple[Part, ...]:
        layer = self.layer
        if isinstance(streams[0], FixedPoint) and not layer.is_exact:
            on_floats = layer.on_floats(forward, layer.num_outputs)
            return (Part(layer, on_floats, None, stores_input=True),)  # type: ignore[arg-type]
        parts = layer.parts(forward)
        if self.recompute:
            parts = tuple(replace(p, backward_step=None, stores_input=True) for p in parts)
        return parts

    def check(self, streams: State, outputs: object) -> None:
        """Refuse hooks on the layer that changed its streams: they can't be computed back."""
        if not self.entered:
            raise ReversibleError(
                "the layer's forward was replaced on the object itself, so the sequence can't "
                "record it; define forward in the class"
            )
        if not self.watched:
            return
        expect_unchanged(streams, self.inputs, "input of this reversible layer")
        expect_unchanged(outputs, self.outputs, "output of this reversible layer")


def expect_unchanged(tensors: object, before: Identities | None, what: str) -> None:
    """Raise if tensors are not the ones, or not as, `identities` found them."""
    if identities(tensors) != before:
        raise ReversibleError(
            f"a forward hook changed the {what}, which can then not be computed back; put the "
            "change into a sub-network or a layer (FSDP casts inputs in such a hook: set "
            "cast_forward_inputs=False)"
        )


def identities(tensors: object) -> Identities:
    """What shows whether tensors were replaced or written into."""
    found = [t for t in tensors if isinstance(t, Tensor)]  # type: ignore[attr-defined]
    return [(memory_of(t).data_ptr() if has_data(memory_of(t)) else 0, version(t)) for t in found]


@dataclass(frozen=True)
class _Node:
    """A node's place on its tape, behind `boundary` - 1 others, and what it is to do."""

    tape: Tape
    boundary: int
    where: str
    record: Record
    anchor: bool


def aliases(tensors: State) -> State:
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
        outputs = aliases(node.record.run_forward(*streams, args=args, kwargs=kwargs))
        kept: State = ()
        if node.record.part.stores_input:
            kept = streams
        elif node.anchor:
            kept = node.record.layer.anchor(outputs)
        announce_stored(node.where, kept)
        check = current_check()
        ctx.compare = None if check is None else check.expect(node.where, streams)
        ctx.node, ctx.count, ctx.stored = node, count, StoredStreams(kept)
        ctx.save_for_backward(*others, *StoredStreams.tensors(kept))
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    @outside_of_compiler
    def backward(ctx: Any, *grads: Tensor | None) -> Gradients:
        node: _Node = ctx.node
        try:
            return _step_back(ctx, node, grads)
        except BaseException as error:
            node.tape.clear()
            locate(error, node.where)
            raise


def _laid_out_grads(grads: Gradients, record: Record) -> Gradients:
    """Gradients as sub-networks shall get them: their strides change bits."""
    pairs = zip(grads, record.gradient_strides, strict=True)
    return tuple(None if g is None else laid_out(g, strides) for g, strides in pairs)


def _step_back(ctx: Any, node: _Node, grads: Gradients) -> Gradients:
    """Compute a node's input and gradients from its output and the output's gradients."""
    record, layer = node.record, node.record.layer
    state = node.tape.take(node.boundary)
    streams, rest = state[: layer.num_outputs], state[layer.num_outputs :]
    saved = saved_tensors(
        ctx, "a parameter, a side input, a tapped value or the stored input of it"
    )
    needs = ctx.needs_input_grad[2:]
    needs_streams, needs_others = needs[: ctx.count], needs[ctx.count :]
    others, kept = saved[: len(needs_others)], ctx.stored.restored(saved[len(needs_others) :])
    if node.anchor:
        stored = layer.from_anchor(kept, streams)
        streams = tuple(laid_out(s, x.stride()) for s, x in zip(stored, streams, strict=True))
    del state, saved
    rewind = Rewind(record, others, needs_others)
    fixed = isinstance(streams[0], FixedPoint)
    with lock_of(record.part.module):
        if record.part.stores_input:
            inputs = behind(kept, streams) if rewind.differentiable else kept
            del streams
            input_grads = rewind.replay(inputs, grads)
        else:
            # The layer alone shall hold its outputs, and so decide how long they are in memory.
            handed = [streams]
            del kept, streams
            inputs, input_grads = rewind.run(handed, grads)
    if fixed or isinstance(inputs[0], FixedPoint):
        check_fixed(inputs)
        if node.boundary > 1:
            input_grads = _laid_out_grads(input_grads, record)
    if ctx.compare is not None:
        ctx.compare(inputs)
    if node.boundary > 1 and any(needs_streams):
        # The layer before may write into what lies on the tape, unless it has a stored input too.
        copy = record.part.stores_input and not rewind.differentiable
        copy = copy and node.boundary - 1 not in node.tape.storing
        # As the layer before gave it, so that its sub-networks see the same strides again.
        with_strides = zip(inputs, record.strides, strict=True)
        before = (laid_out(x, strides, copy=copy) for x, strides in with_strides)
        node.tape.put(node.boundary - 1, (*before, *rest))
    wanted = (g if need else None for g, need in zip(input_grads, needs_streams, strict=True))
    return None, None, *wanted, *rewind.leaf_grads()
