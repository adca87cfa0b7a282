"""The forward pass of a node: runs a part of a layer and remembers what its repetition needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from revgrad.autograd.context import evaluating
from revgrad.autograd.inventory import Inventory
from revgrad.autograd.layout import gradient_strides, laid_out
from revgrad.autograd.protocol import Layer, Part, State
from revgrad.autograd.recompute import Evaluation, accelerators
from revgrad.autograd.tail import cut
from revgrad.autograd.wrappers import refuse_wrapped
from revgrad.errors import ReversibleError
from revgrad.fixed_point import FixedPoint


class SideInputs:
    """Arguments of the sub-networks besides their stream: tensors among any other values."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.count = 0
        self._spec: TreeSpec | None = None
        if args or kwargs:
            leaves, self._spec = tree_flatten((args, kwargs))
            self.count = sum(isinstance(leaf, Tensor) for leaf in leaves)
            self._constants = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves]

    @staticmethod
    def tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """The tensors among the arguments. Nodes store them; this object must not hold them."""
        if not args and not kwargs:
            return []
        return [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]

    def with_tensors(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The positional and keyword arguments with `tensors` in the places of the tensors."""
        if self._spec is None:
            return (), {}
        remaining = iter(tensors)
        leaves = [next(remaining) if c is None else c[0] for c in self._constants]
        args, kwargs = tree_unflatten(leaves, self._spec)
        return args, kwargs


class Record:
    """What a node knows besides tensors: its part of a layer, and how its sub-networks ran.

    Args:
        layer: The layer.
        part: The part of it that is the node.
        side: Its side inputs.
        streams: Its input streams.
        contiguous: Whether its gradients have to be contiguous, see `gradient_strides`.
    """

    def __init__(
        self, layer: Layer, part: Part, side: SideInputs, streams: State, contiguous: bool
    ) -> None:
        self.layer = layer
        self.part = part
        self.side = side
        self.devices = accelerators(streams)
        self.strides = [x.stride() for x in streams]
        self.contiguous = contiguous
        self.gradient_strides = [gradient_strides(x, contiguous) for x in streams]
        self.inventory = Inventory(part.module)
        refuse_wrapped(layer, self.inventory)
        # Where each parameter stands (tied ones at several places), and its number.
        self.places: list[tuple[dict[str, Any], str, int]] = []
        self.evaluations: list[Evaluation] = []
        self.whole: Evaluation | None = None

    def collect_parameters(self) -> list[Tensor]:
        """The parameters of the part, each once; `places` says where each stands."""
        index: dict[int, int] = {}
        parameters: list[Tensor] = []
        for _, owner in self.inventory.named:
            for key, parameter in owner._parameters.items():
                if parameter is None:
                    continue
                if isinstance(parameter, UninitializedParameter):
                    raise ReversibleError(
                        f"parameter '{key}' of {type(owner).__name__} has no shape yet; run the "
                        "network once under torch.no_grad() to initialise its lazy modules"
                    )
                if id(parameter) not in index:
                    index[id(parameter)] = len(parameters)
                    parameters.append(parameter)
                self.places.append((owner._parameters, key, index[id(parameter)]))
        return parameters

    def readable(self, grad: Tensor | None) -> Tensor | None:
        """A gradient of a sub-network's value, laid out so that the sub-network reads it right."""
        if grad is None or not self.contiguous:
            return grad
        return laid_out(grad, gradient_strides(grad, True))

    def run_forward(self, *streams: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> State:
        """Run the part for the first time, remembering the evaluations of its sub-networks."""
        with evaluating(self):
            if self.part.backward_step is not None:
                outputs = self.part.forward(*streams, *args, **kwargs)
            else:  # the generic step back repeats the layer as a whole
                self.whole = Evaluation(self.part.module, self.devices, self.inventory)
                outputs = self.whole.first(self.part.forward, *streams, *args, **kwargs)
                if self.whole.random is not None:
                    # Repeated one by one, its sub-networks leave the generators as they were.
                    self.whole.random.after = None
        found = check_streams(outputs, self.layer.num_outputs)
        if isinstance(streams[0], FixedPoint):
            check_fixed(found[: self.layer.num_outputs])
        return found

    def run(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Evaluate a sub-network, called by the layer."""
        inventory = self.inventory if module is self.part.module else None
        evaluation = Evaluation(module, self.devices, inventory)
        with evaluating(None):
            result = evaluation.first(module, *args, **kwargs)
        self.evaluations.append(evaluation)
        return result

    def run_onto(self, module: nn.Module, stream: Tensor, x: Tensor) -> Tensor | None:
        """Evaluate a sub-network and add its value to the stream, where one pass does both."""
        found = cut(module, stream)
        if found is None:
            return None
        inventory = self.inventory if module is self.part.module else None
        evaluation = Evaluation(module, self.devices, inventory)
        evaluation.cut = found
        with evaluating(None):
            result: Tensor = evaluation.first(found.sum, stream, x)
        self.evaluations.append(evaluation)
        return result


def check_streams(outputs: object, count: int) -> State:
    """What a layer returned, if it is a tuple of at least `count` tensors."""
    found = tuple(outputs) if isinstance(outputs, tuple | list) else ()
    if len(found) >= count and all(isinstance(t, Tensor) for t in found):
        return found
    raise ReversibleError(
        f"the layer returned {type(outputs).__name__}; forward and inverse must return a tuple of "
        f"tensors, one for each stream (here {count})"
    )


def check_fixed(streams: State) -> None:
    """Refuse floats among the streams of a layer that calls itself exact."""
    if not all(isinstance(s, FixedPoint) for s in streams):
        raise ReversibleError(
            "the layer has exact = True, but its streams became floats: exact are, forward and "
            "back, sums and differences with values of self.run(module, x), and what only moves "
            "numbers. Set exact = False, and its input is stored in exact arithmetic"
        )
