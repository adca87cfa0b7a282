"""A whole sequence as one node, whose forward and backward pass `torch.compile` can trace.

On a tape, nodes hand activations on to each other while the backward pass runs, which no compiler
can follow. Here the state goes back layer by layer inside a single backward function, and
`torch.func.vjp` stands for the engine. The layers' own `backward_step` is the same.

Nobody brings random numbers or buffers back here, so `revgrad.autograd.scrutiny` looks at what a
layer was traced to, and refuses it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp
from torch.utils._pytree import tree_flatten, tree_unflatten

from revgrad.autograd.layout import split_dense
from revgrad.autograd.protocol import Gradients, State
from revgrad.autograd.rewind import Rewind
from revgrad.autograd.scrutiny import scrutinise


@dataclass
class Plan:
    """What the node is to do.

    Attributes:
        layers: The layers, each with its name for messages and its number of tapped values.
        places: For every part, where each of its parameters by name stands among all, and whether
            it needs a gradient.
        sizes: Channels of the output streams, which are joined; None leaves them as they are.
        contiguous: Whether the gradients of a batch of one have to be contiguous.
        side: Side inputs of the sub-networks: the leaves of `(args, kwargs)`, tensors as None.
        spec: How to put them together again.
    """

    layers: list[tuple[str, Any, int]]
    places: list[dict[str, tuple[int, bool]]]
    sizes: list[int] | None
    contiguous: bool
    side: list[Any]
    spec: Any

    def arguments(self, tensors: State) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The side inputs with these tensors in their places."""
        remaining = iter(tensors)
        leaves = [next(remaining) if leaf is None else leaf[0] for leaf in self.side]
        args, kwargs = tree_unflatten(leaves, self.spec)
        return args, kwargs

    def count_side(self) -> int:
        """How many of the side inputs are tensors."""
        return sum(leaf is None for leaf in self.side)


def run_whole(
    layers: list[tuple[str, Any, int]],
    sizes: list[int] | None,
    contiguous: bool,
    state: State,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> State:
    """Run layers as one node.

    Args:
        layers: The layers, each with its name for messages and its number of tapped values.
        sizes: Channels of the output streams, which are joined; None leaves them as they are.
        contiguous: Whether the gradients of a batch of one have to be contiguous.
        state: The streams.
        args: Side inputs of the sub-networks.
        kwargs: The same by keyword.

    Returns:
        The output streams, or what they are joined to, and behind them the tapped values.
    """
    leaves, spec = tree_flatten((args, kwargs))
    side = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves]
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    parts = [part for _, layer, _ in layers for part in layer.parts(layer.forward)]
    places, parameters = _places([part.module for part in parts])
    plan = Plan(layers, places, sizes, contiguous, side, spec)
    outputs: State = _Whole.apply(plan, len(state), *state, *tensors, *parameters)
    return outputs


def _places(
    modules: list[nn.Module],
) -> tuple[list[dict[str, tuple[int, bool]]], list[Tensor]]:
    """The parameters of modules, and where each name finds its own."""
    parameters: list[Tensor] = []
    places = []
    for module in modules:
        found = {}
        for name, parameter in module.named_parameters():
            found[name] = (len(parameters), parameter.requires_grad)
            parameters.append(parameter)
        places.append(found)
    return places, parameters


class _Whole(torch.autograd.Function):
    """The layers of a sequence; stores its output only."""

    @staticmethod
    def forward(plan: Plan, count: int, *tensors: Tensor) -> State:
        state, taps = tensors[:count], tensors[:0]
        args, kwargs = plan.arguments(tensors[count:])
        for where, layer, _ in plan.layers:
            before, rest = state[: layer.num_inputs], state[layer.num_inputs :]
            found = before
            for part in layer.parts(layer.forward):
                found = part.forward(*found, *args, **kwargs)
            scrutinise(where, before, tensors)
            state = (*found[: layer.num_outputs], *rest)
            taps = (*taps, *found[layer.num_outputs :])
        if plan.sizes is not None:
            return (torch.cat(state, 1), *taps)
        # Copies: a stream that passed unchanged must not be an output that is an input.
        return (*(s.clone() for s in state), *taps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: State) -> None:
        plan, count, *tensors = inputs
        ctx.plan, ctx.count = plan, count
        kind = tensors[0].device.type
        ctx.autocast = kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        taps = sum(extra for _, _, extra in plan.layers)
        ctx.outputs = len(output) - taps
        # Parameters too: only what is saved so is checked for changes before it is used again.
        ctx.save_for_backward(*output[: ctx.outputs], *tensors[count:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Gradients:
        plan: Plan = ctx.plan
        cut = ctx.outputs
        # The compiler traces a backward function anew, with contiguous gradients, when it first
        # asks for a layout; it must not be in the middle of a vjp then.
        grads[0].is_contiguous()
        state, others = ctx.saved_tensors[:cut], ctx.saved_tensors[cut:]
        state_grads, tap_grads = grads[:cut], grads[cut:]
        if plan.sizes is not None:
            state = tuple(split_dense(state[0], plan.sizes, 1))
            state_grads = state_grads[0].split(plan.sizes, 1)
        kind, enabled, dtype = ctx.autocast
        # The backward pass runs outside of the forward pass's autocast.
        with torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False):
            return None, None, *_back(plan, state, state_grads, tap_grads, others)


def _back(
    plan: Plan, state: State, grads: Gradients, tap_grads: Gradients, others: State
) -> Gradients:
    """Gradients of the input streams, side inputs and parameters (`others`), in this order."""
    args, kwargs = plan.arguments(others)
    side_grads: Gradients = (None,) * plan.count_side()
    parameters = others[plan.count_side() :]
    totals: list[Tensor | None] = [None] * len(parameters)
    left_places = list(plan.places)
    for _, layer, extra in reversed(plan.layers):
        left = len(tap_grads) - extra
        own, tap_grads = tap_grads[left:], tap_grads[:left]
        streams, rest = state[: layer.num_outputs], state[layer.num_outputs :]
        stream_grads, rest_grads = grads[: layer.num_outputs], grads[layer.num_outputs :]
        if plan.contiguous:
            stream_grads = tuple(_readable(g) for g in stream_grads)
        found = (*stream_grads, *own)
        for part in reversed(layer.parts(layer.forward)):
            places = left_places.pop()
            step = TracedRewind(part.module, places, parameters, side_grads)
            streams, found = part.backward_step(step, streams, found, *args, **kwargs)
            side_grads = step.side_grads
            for name, grad in step.grads.items():
                place = places[name][0]
                totals[place] = Rewind.add(totals[place], grad)
        state, grads = (*streams, *rest), (*found, *rest_grads)
    return *grads, *side_grads, *totals


def _readable(grad: Tensor | None) -> Tensor | None:
    """See `gradient_strides`."""
    if grad is None or grad.dim() <= 2 or grad.shape[0] != 1:
        return grad
    return grad.contiguous()


class TracedRewind:
    """What `Rewind` is on a tape: the tools of a layer's `backward_step`.

    Args:
        module: The module of the part that goes back.
        places: Where each of its parameters stands, see `Plan`.
        parameters: All parameters.
        side_grads: Gradients of the tensors among the side inputs so far.
    """

    # A layer then writes nothing in place and looks at no storage.
    differentiable = True
    add = staticmethod(Rewind.add)
    filled = staticmethod(Rewind.filled)

    def __init__(
        self,
        module: nn.Module,
        places: dict[str, tuple[int, bool]],
        parameters: State,
        side_grads: Gradients,
    ) -> None:
        self.side_grads = side_grads
        self._module, self._places, self._parameters = module, places, parameters
        self.grads: dict[str, Tensor] = {}

    def evaluate(
        self, module: nn.Module, x: Tensor, grad: Tensor | None, *args: Any, **kwargs: Any
    ) -> TracedEvaluated:
        """As `Rewind.evaluate`."""
        leaves, spec = tree_flatten((args, kwargs))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        moving = [i for i in places if leaves[i].is_floating_point()]

        moved, fixed = self._of(module)

        def call(parameters: dict[str, Tensor], x: Tensor, tensors: list[Tensor]) -> Tensor:
            filled = list(leaves)
            for i, tensor in zip(moving, tensors, strict=True):
                filled[i] = tensor
            inner_args, inner_kwargs = tree_unflatten(filled, spec)
            return _call(module, {**fixed, **parameters}, (x, *inner_args), inner_kwargs)

        tensors = [leaves[i] for i in moving]
        value, pull = _vjp(call, moved, x, tensors)
        numbers = [places.index(i) for i in moving]
        return TracedEvaluated(self, module, value, pull, grad, numbers)

    def undo_sum(
        self,
        stream: Tensor,
        module: nn.Module,
        x: Tensor,
        grad: Tensor | None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, TracedEvaluated]:
        """As `Rewind.undo_sum`."""
        evaluated = self.evaluate(module, x, grad, *args, **kwargs)
        return self.subtract(stream, evaluated), evaluated

    def subtract(self, stream: Tensor, evaluated: TracedEvaluated) -> Tensor:
        """As `Rewind.subtract`."""
        return stream - evaluated.take_value()

    def weight(self, module: nn.Module) -> TracedWeight:
        """As `Rewind.weight`."""
        moved, fixed = self._of(module)
        value, pull = _vjp(lambda p: _call(module, {**fixed, **p}, (), {}), moved)
        return TracedWeight(self, module, value, pull, len(moved) > 0)

    def _of(self, module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The parameters of a sub-module by name: those that need a gradient, and the others."""
        prefix = _path(self._module, module)
        moved: dict[str, Tensor] = {}
        fixed: dict[str, Tensor] = {}
        for name, (place, needs_grad) in self._places.items():
            if name.startswith(prefix):
                (moved if needs_grad else fixed)[name[len(prefix) :]] = self._parameters[place]
        return moved, fixed

    def book(self, module: nn.Module, grads: dict[str, Tensor]) -> None:
        """Book the gradients of a sub-module's parameters."""
        prefix = _path(self._module, module)
        for name, grad in grads.items():
            full = prefix + name
            known = self.grads.get(full)
            self.grads[full] = grad if known is None else known + grad


class TracedEvaluated:
    """As `Evaluated`: a sub-network's value, and the way to the gradients behind it."""

    def __init__(
        self,
        rewind: TracedRewind,
        module: nn.Module,
        value: Tensor,
        pull: Any,
        grad: Tensor | None,
        numbers: list[int],
    ) -> None:
        self._rewind, self._module, self._value, self._pull = rewind, module, value, pull
        self._grad = grad
        self._numbers = numbers

    def take_value(self) -> Tensor:
        """The value."""
        return self._value

    def take_unrounded(self) -> Tensor:
        """The value: there is no grid."""
        return self._value

    def pull(self) -> Tensor | None:
        """Gradient with respect to the sub-network's input; books the others."""
        if self._grad is None:
            return None
        rewind = self._rewind
        parameters, x, side = self._pull(self._grad.to(self._value.dtype))
        rewind.book(self._module, parameters)
        totals = list(rewind.side_grads)
        for i, grad in zip(self._numbers, side, strict=True):
            totals[i] = Rewind.add(totals[i], grad)
        rewind.side_grads = tuple(totals)
        result: Tensor = x
        return result


class TracedWeight:
    """As `Weight`: a tensor that a module makes of its parameters alone."""

    def __init__(
        self, rewind: TracedRewind, module: nn.Module, value: Tensor, pull: Any, needs_grad: bool
    ) -> None:
        self.value, self.needs_grad = value, needs_grad
        self._rewind, self._module, self._pull = rewind, module, pull

    def book(self, grad: Tensor) -> None:
        """Book the gradients of the parameters, given that of the tensor; once."""
        self._rewind.book(self._module, self._pull(grad.to(self.value.dtype))[0])


def _vjp(function: Any, *primals: Any) -> tuple[Tensor, Any]:
    """The value of a function, and what gives the gradients of its arguments for that of it."""
    value, pull = vjp(function, *primals)  # type: ignore[misc]
    return value, pull


def _call(
    module: nn.Module,
    parameters: dict[str, Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Tensor:
    """Call a module with these parameters."""
    result: Tensor = functional_call(module, parameters, args, kwargs)
    return result


def _path(module: nn.Module, inside: nn.Module) -> str:
    """The name of a sub-module, as a prefix of its parameters' names."""
    for name, found in module.named_modules():
        if found is inside:
            return name + "." if name else ""
    raise RuntimeError("a layer evaluated a module that is no part of it")
