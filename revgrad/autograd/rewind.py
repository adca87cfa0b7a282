"""One step of a tape backwards: the tools with which a layer computes its input and gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.utils._pytree import tree_map

from revgrad.autograd.context import evaluating
from revgrad.autograd.layout import alias, is_shared
from revgrad.autograd.protocol import Gradients, State
from revgrad.autograd.recompute import Evaluation, call_with_tensors
from revgrad.autograd.record import Record, check_streams
from revgrad.autograd.tail import Cut, Statistics
from revgrad.errors import ReversibleError
from revgrad.fixed_point import FixedPoint, Grid, to_fixed, to_float


class Evaluated:
    """A sub-network's value in the backward pass, and the way to the gradients behind it."""

    def __init__(
        self,
        rewind: Rewind,
        value: Tensor,
        inputs: Leaves,
        grad: Tensor | None,
        grid: Grid | None,
    ) -> None:
        self._rewind = rewind
        self._inputs = inputs
        self._grad = grad
        self._grid = grid
        self._edge: GradientEdge | None = None
        if grad is not None and value.requires_grad:
            self._edge = get_gradient_edge(value)
            self._dtype = value.dtype
        self._value: Tensor | None = value if rewind.differentiable else value.detach()

    def take_value(self) -> Tensor:
        """The value as the stream takes it, once: the taker decides how long it is in memory."""
        value = self.take_unrounded()
        return value if self._grid is None else to_fixed(value, self._grid)

    def take_unrounded(self) -> Tensor:
        """The value as the sub-network gave it."""
        value, self._value = self._value, None
        assert value is not None, "the value was taken before"
        return value

    def pull(self, grad: Tensor | None = None) -> Tensor | None:
        """Gradient with respect to the sub-network's input.

        Gradients of parameters and side inputs go to the step's own account. The graph of the
        sub-network is freed on the way.

        Args:
            grad: Gradient of the value, where it is known only once the value is; it replaces the
                one that `evaluate` got.
        """
        edge, known, self._edge, self._grad = self._edge, self._grad, None, None
        grad = known if grad is None else grad
        if edge is None or grad is None:
            return None
        readable = self._rewind._record.readable(grad.to(self._dtype))
        assert readable is not None
        return self._rewind._gradients([edge], [readable], self._inputs)[0]


class EvaluatedInParts(Evaluated):
    """A sub-network whose value was subtracted in one pass: only the input of its tail is known."""

    def __init__(
        self,
        rewind: Rewind,
        cut: Cut,
        before: Tensor,
        statistics: Statistics,
        inputs: Leaves,
        grad: Tensor | None,
    ) -> None:
        super().__init__(rewind, before, inputs, grad, None)
        self._cut = cut
        self._statistics = statistics

    def pull(self, grad: Tensor | None = None) -> Tensor | None:
        """Gradient with respect to the sub-network's input."""
        known, self._grad = self._grad, None
        grad = known if grad is None else grad
        del known
        if grad is None:
            return None
        before = self.take_unrounded()
        # As ordinary autograd hands it over.
        dy = grad.to(before.dtype)
        self._grad, own = self._cut.tail.gradients(dy, before, self._statistics)
        del before, dy, grad  # not to be held while the head's gradients are computed
        self._rewind.book(own)
        return super().pull()


class Weight:
    """A tensor that a module makes of its parameters alone, and the way to their gradients."""

    def __init__(self, rewind: Rewind, made: Tensor) -> None:
        self._rewind = rewind
        self._made = made
        self.value = made if rewind.differentiable else made.detach()

    @property
    def needs_grad(self) -> bool:
        """Whether a gradient is asked for."""
        return self._made.requires_grad

    def book(self, grad: Tensor) -> None:
        """Book the gradients of the parameters, given that of the tensor; once."""
        rewind = self._rewind
        grad = grad.to(self._made.dtype)
        rewind._gradients([get_gradient_edge(self._made)], [grad], Leaves([], rewind._leaves))


@dataclass(frozen=True)
class Leaves:
    """Where the graph of an evaluation ends: its streams, and the layer's other tensors."""

    streams: list[Tensor]
    others: list[Tensor]


class Rewind:
    """A layer's step back: handed to `ReversibleLayer.backward_step`.

    Args:
        record: The layer's forward pass.
        tensors: Side tensors and parameters as they were in the forward pass.
        needs: Which of `tensors` need a gradient.
    """

    def __init__(self, record: Record, tensors: Sequence[Tensor], needs: Sequence[bool]) -> None:
        self._record = record
        # With create_graph=True this step is itself differentiated, so nothing may be cut off.
        self.differentiable = torch.is_grad_enabled()
        self._tensors = tensors
        self._needs = needs
        self._leaves = self._new_leaves()
        self._grads: list[Tensor | None] = [None] * len(tensors)
        self._evaluations = list(record.evaluations)

    def run(self, handed: list[State], grads: Gradients) -> tuple[State, Gradients]:
        """Let the layer compute its inputs from its outputs, and their gradients.

        Args:
            handed: The outputs, taken from the list.
            grads: Their gradients.
        """
        step = self._record.part.backward_step or self._generic
        args, kwargs = self._record.side.with_tensors(self._leaves)

        def call() -> tuple[State, Gradients]:
            if not args and not kwargs:
                # Python moves these arguments; with `*args` it would hold them until the return.
                return step(self, handed.pop(), grads)
            return step(self, handed.pop(), grads, *args, **kwargs)

        with torch.set_grad_enabled(self.differentiable):
            found: tuple[State, Gradients] = self._with_parameters(self._leaves, call)
            return found

    def replay(
        self, inputs: State, grads: Gradients, needs: Sequence[bool] | None = None
    ) -> Gradients:
        """Gradients of the inputs, where these are known: the part is run forward again.

        Args:
            inputs: The inputs.
            grads: Gradients of the part's results.
            needs: Which of the inputs need one; None: all.
        """
        with torch.set_grad_enabled(self.differentiable):
            return self._differentiate(inputs, grads, expected=None, needs=needs)

    def leaf_grads(self) -> Gradients:
        """Gradients of the side tensors and parameters, in their order."""
        return tuple(self._grads)

    # --- for layers ---------------------------------------------------------------------------

    def evaluate(
        self, module: nn.Module, x: Tensor, grad: Tensor | None, *args: Any, **kwargs: Any
    ) -> Evaluated:
        """Evaluate a sub-network again, as in the forward pass.

        A layer undoes its last evaluation first, so evaluations of one module are taken from the
        last to the first.

        Args:
            module: The sub-network, a part of the layer.
            x: Its input, computed back; the sub-network sees fixed-point numbers as floats.
            grad: Gradient of its result. None if there is none: then none is computed behind it.
            *args: Side inputs, as `backward_step` got them.
            **kwargs: Side inputs by keyword.
        """
        leaf = self._leaf(to_float(x), grad is not None)
        evaluation = self._next(module, last=True)
        with torch.set_grad_enabled(grad is not None or self.differentiable):
            if not self.differentiable:
                others = self._leaves
                value = evaluation.again(module, leaf, *args, **kwargs)
            else:
                # Leaves of its own: a leaf shared with another evaluation of this step, whose
                # value went into `x`, would get the gradient that flows through `x` as well.
                others = self._new_leaves()
                new = {id(old): leaf for old, leaf in zip(self._leaves, others, strict=True)}
                args, kwargs = tree_map(lambda a: new.get(id(a), a), (args, kwargs))
                call = evaluation.again
                value = self._with_parameters(others, call, module, leaf, *args, **kwargs)
        grid = x.grid if isinstance(x, FixedPoint) else None
        return Evaluated(self, value, Leaves([leaf], others), grad, grid)

    def undo_sum(
        self,
        stream: Tensor,
        module: nn.Module,
        x: Tensor,
        grad: Tensor | None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Evaluated]:
        """Take back the sum of a stream and a sub-network's value.

        Args:
            stream: The sum. Written into, unless somebody else holds it.
            module: The sub-network.
            x: Its input, see `evaluate` for this and the rest.
            grad: Gradient of the sum.
            *args: Side inputs.
            **kwargs: Side inputs by keyword.

        Returns:
            The stream before, and the sub-network as evaluated, to `pull` the gradient through.
        """
        if self.differentiable or self._find(module, last=True).cut is None:
            evaluated = self.evaluate(module, x, grad, *args, **kwargs)
            return self.subtract(stream, evaluated), evaluated
        evaluation = self._next(module, last=True)
        cut = evaluation.cut
        assert cut is not None
        leaf = self._leaf(to_float(x), grad is not None)
        own = stream.clone() if is_shared(stream) else stream

        def again() -> tuple[Tensor, Tensor, Statistics]:
            with torch.set_grad_enabled(grad is not None):
                before = cut.before(leaf)
            return before, *cut.undo(own, before.detach())

        before, stream, statistics = evaluation.again(again)
        leaves = Leaves([leaf], self._leaves)
        return stream, EvaluatedInParts(self, cut, before, statistics, leaves, grad)

    def weight(self, module: nn.Module) -> Weight:
        """Let a sub-module make a tensor of its parameters again, such as orthogonal matrices.

        Args:
            module: A module whose `forward` takes nothing, a part of the layer.
        """
        with torch.enable_grad():
            return Weight(self, module())

    def subtract(self, stream: Tensor, evaluated: Evaluated) -> Tensor:
        """`stream - evaluated`; frees the value.

        Written into the stream's own memory, unless somebody else holds it too, such as a hook
        that kept the input of a sub-network.
        """
        if self.differentiable or is_shared(stream):
            return stream - evaluated.take_value()
        if isinstance(stream, FixedPoint):
            stream.grid.subtract_(stream.integers, evaluated.take_unrounded())
            return stream
        return stream.sub_(evaluated.take_value())

    def book(self, grads: list[tuple[Tensor, Tensor]]) -> None:
        """Book gradients of parameters, where a layer computes them by itself.

        Args:
            grads: Pairs of a parameter, as the layer finds it in this step, and its gradient.
        """
        for leaf, grad in grads:
            if not leaf.requires_grad:
                continue
            places = [i for i, known in enumerate(self._leaves) if known is leaf]
            if not places:
                raise _captured(leaf)
            self._grads[places[0]] = self.add(self._grads[places[0]], grad.to(leaf.dtype))

    @staticmethod
    def add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        """The sum of two gradients, either of which may be missing.

        Writes into neither: gradients belong to the engine and may share memory.
        """
        if a is None or b is None:
            return b if a is None else a
        return a + b

    @staticmethod
    def filled(outputs: State, grads: Gradients) -> State | None:
        """Gradients with zeros for missing ones, or None if all are missing."""
        if all(g is None for g in grads):
            return None
        return tuple(
            torch.zeros_like(o) if g is None else g for o, g in zip(outputs, grads, strict=True)
        )

    # --- inside -------------------------------------------------------------------------------

    def _generic(
        self, _: Rewind, outputs: State, grads: Gradients, *args: Any, **kwargs: Any
    ) -> tuple[State, Gradients]:
        """The step back of a layer that gives only `forward` and `inverse`.

        Inverts, then runs the layer forward again with gradients.
        """
        record, layer = self._record, self._record.layer
        whole = record.whole
        assert whole is not None
        with evaluating(_Repeat(self, last=True)):
            inverted = whole.again(layer.inverse, *outputs, *args, **kwargs)
        inputs = check_streams(inverted, layer.num_inputs)[: layer.num_inputs]
        return inputs, self._differentiate(inputs, grads, expected=outputs)

    def _differentiate(
        self,
        inputs: State,
        grads: Gradients,
        expected: State | None,
        needs: Sequence[bool] | None = None,
    ) -> Gradients:
        """Run the part forward from its inputs and back-propagate.

        Args:
            inputs: The input streams.
            grads: Gradients of the part's results.
            expected: The output streams, if the result shall be compared with them.
            needs: Which of the inputs need one; None: all.
        """
        record, whole = self._record, self._record.whole
        assert whole is not None
        if all(g is None for g in grads):
            return (None,) * len(inputs)
        needed = needs or (True,) * len(inputs)
        streams = [self._leaf(x, need) for x, need in zip(inputs, needed, strict=True)]
        leaves = Leaves(streams, self._new_leaves())
        args, kwargs = record.side.with_tensors(leaves.others)
        self._evaluations = list(record.evaluations)
        with torch.enable_grad(), evaluating(_Repeat(self, last=False)):
            again = self._with_parameters(
                leaves.others, whole.again, record.part.forward, *leaves.streams, *args, **kwargs
            )
        if expected is not None:
            _expect_equal(expected, again)
        pairs = [
            (get_gradient_edge(a), g.to(a.dtype))
            for a, g in zip(again, grads, strict=True)
            if g is not None and a.requires_grad
        ]
        del again  # the way back needs the graph, not its results
        return self._gradients([e for e, _ in pairs], [g for _, g in pairs], leaves)

    def _new_leaves(self) -> list[Tensor]:
        """Side tensors and parameters of the forward pass, as ends of a graph of this step."""
        return [self._leaf(t, need) for t, need in zip(self._tensors, self._needs, strict=True)]

    def _leaf(self, tensor: Tensor, needs_grad: bool) -> Tensor:
        """A tensor with the same data at which gradients of this step end."""
        if self.differentiable:
            return alias(tensor)
        can_have = tensor.is_floating_point() or tensor.is_complex()
        return tensor.detach().requires_grad_(needs_grad and can_have)

    def _with_parameters(
        self, leaves: Sequence[Tensor], call: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Run `call` while the parameters of the part are those among `leaves`."""
        record = self._record
        first = record.side.count
        replacements = [(tensors, key, leaves[first + i]) for tensors, key, i in record.places]
        return call_with_tensors(replacements, call, *args, **kwargs)

    def _next(self, module: nn.Module, last: bool) -> Evaluation:
        chosen = self._find(module, last)
        self._evaluations.remove(chosen)
        return chosen

    def _find(self, module: nn.Module, last: bool) -> Evaluation:
        found = [e for e in self._evaluations if e.module is module]
        if not found:
            raise ReversibleError(
                f"the backward pass evaluates a {type(module).__name__} that the forward pass did "
                "not, or more often. Was the sub-network replaced since? Does the layer call "
                "self.run() once for each in either direction?"
            )
        return found[-1 if last else 0]

    def _gradients(
        self, edges: list[GradientEdge], grads: list[Tensor], leaves: Leaves
    ) -> Gradients:
        """Back-propagate; books gradients of side tensors and parameters, returns the streams'."""
        wanted = [i for i, leaf in enumerate(leaves.others) if leaf.requires_grad]
        targets = [x for x in leaves.streams if x.requires_grad]
        targets += [leaves.others[i] for i in wanted]
        self._refuse_captured([e.node for e in edges], targets)
        if not edges or not targets:
            return (None,) * len(leaves.streams)
        found = torch.autograd.grad(
            edges, targets, grads, allow_unused=True, create_graph=self.differentiable
        )
        cut = len(found) - len(wanted)
        for i, grad in zip(wanted, found[cut:], strict=True):
            self._grads[i] = self.add(self._grads[i], grad)
        results = iter(found[:cut])
        return tuple(next(results) if x.requires_grad else None for x in leaves.streams)

    def _refuse_captured(self, roots: list[Node], targets: list[Tensor]) -> None:
        """Find a tensor that the sub-network uses with gradient without owning it.

        Its gradient would be lost: it is no input of the layer's node.
        """
        ends = {id(t) for t in targets}
        # The history of a target is the engine's business, not this step's.
        seen = {t.grad_fn for t in targets if t.grad_fn is not None}
        todo = [root for root in roots if root not in seen]
        while todo:
            node = todo.pop()
            variable = getattr(node, "variable", None)
            if variable is not None and id(variable) not in ends:
                raise _captured(variable)
            for following, _ in node.next_functions:
                if following is not None and following not in seen:
                    seen.add(following)
                    todo.append(following)


def _captured(tensor: Tensor) -> ReversibleError:
    return ReversibleError(
        f"a sub-network uses a tensor of shape {tuple(tensor.shape)} that requires "
        "a gradient but is no parameter of the layer and no argument; its gradient "
        "would be lost. Pass it as an argument: sequence(x, tensor), which hands it "
        "to every sub-network, or register it in the sub-network as a parameter"
    )


def _expect_equal(outputs: State, again: State) -> None:
    """A wrong inverse, or one that draws other random numbers, gives wrong gradients."""
    for known, repeated in zip(outputs, again, strict=False):
        if known.numel() == 0:
            continue
        deviation, scale = (known - repeated).abs().max(), known.abs().max()
        exact = isinstance(known, FixedPoint)
        tolerance = 0.0 if exact else max(1e-2, 32 * torch.finfo(known.dtype).eps)
        if deviation > tolerance * (1 + scale):
            raise ReversibleError(
                "the layer's inverse does not undo its forward pass: running it forward again "
                f"is off by {deviation.item():.1e} of {scale.item():.1e}. If it draws random "
                "numbers, evaluate the sub-networks that do so through self.run(module, x), "
                "which repeats them in either direction"
            )


class _Repeat:
    """Evaluates the sub-networks of a layer as they were evaluated in the forward pass."""

    def __init__(self, rewind: Rewind, last: bool) -> None:
        self.rewind = rewind
        self.last = last

    def run(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Repeat the next evaluation of `module`."""
        evaluation = self.rewind._next(module, self.last)
        with evaluating(None):
            value = evaluation.again(module, *args, **kwargs)
        record = self.rewind._record
        if record.contiguous and isinstance(value, Tensor) and value.requires_grad:
            value.register_hook(
                record.readable
            )  # what the layer makes of a gradient has any strides
        return value

    def run_onto(self, module: nn.Module, stream: Tensor, x: Tensor) -> Tensor | None:
        """The way back of such a layer takes values alone."""
        return None
