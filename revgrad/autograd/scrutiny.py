"""Look at what a layer was traced to by `torch.compile`, and refuse what can't be repeated.

A sequence that runs as one node evaluates each sub-network twice, and nobody brings random numbers
or buffers back for the second time. What a sub-network does shows in the operators of its graph:
they are run once more here, on tensors without numbers, at the time of compiling.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._dynamo.comptime import ComptimeContext, comptime
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

ADVICE = (
    "Compile the sub-networks instead, sequence.compile_sub_networks(), or allow graph breaks: "
    "the sequence then runs outside of the compiled graph"
)
_SEEN = "seen by revgrad"


def scrutinise(where: str, streams: tuple[Tensor, ...], tensors: tuple[Tensor, ...]) -> None:
    """Refuse the layer that was just traced, if it can't be repeated.

    Args:
        where: Its name.
        streams: Its input streams.
        tensors: Everything that gradients are computed for.
    """
    comptime(_look)


def refuse(reason: str) -> None:
    """Break the graph here, which is an error for `fullgraph=True`."""
    comptime(_break)


def _break(context: ComptimeContext) -> None:
    reason = context.get_local("reason").as_python_constant()
    context.graph_break(f"{reason}. {ADVICE}")


def _look(context: ComptimeContext) -> None:
    where = context.get_local("where").as_python_constant()
    streams, tensors = (_examples(context.get_local(n).as_proxy()) for n in ("streams", "tensors"))
    # Nodes of the layers before were seen already.
    nodes = [node for node in context.graph().nodes if not node.meta.get(_SEEN)]
    for node in nodes:
        node.meta[_SEEN] = True
    reason = _captured(nodes, tensors) or _Rerun([*streams, *tensors]).obstacle(nodes)
    if reason is None and _python_draws(context):
        reason = "draws from Python's random, and the repetition would draw other numbers"
    if reason is not None:
        context.graph_break(f"{where}: a sub-network {reason}. {ADVICE}")


def _examples(proxies: Any) -> list[Tensor]:
    return [_example(proxy.node) for proxy in tree_leaves(proxies)]


def _example(node: fx.Node) -> Any:
    """The tensor without numbers that the compiler traced in the place of a node."""
    return node.meta.get("example_value")


def _python_draws(context: ComptimeContext) -> bool:
    """Whether the traced function took numbers from `random`, here or elsewhere."""
    output = context._i_will_not_complain_if_bc_breaks_InstructionTranslator().output
    return bool(getattr(output, "random_calls", False))


def _captured(nodes: list[fx.Node], tensors: list[Tensor]) -> str | None:
    """What is to be said if a tensor with gradient came from outside."""
    known = set(map(id, tensors))
    for node in nodes:
        tensor = _example(node)
        if node.op != "placeholder" or not isinstance(tensor, Tensor):
            continue
        if tensor.requires_grad and id(tensor) not in known:
            return (
                f"uses a tensor of shape {tuple(tensor.shape)} that requires a gradient but is no "
                "parameter of the layer and no argument; its gradient would be lost"
            )
    return None


class _Rerun(TorchDispatchMode):
    """Runs traced nodes again, without numbers, and finds what speaks against a repetition.

    Args:
        kept: Tensors that must not be written into.
    """

    def __init__(self, kept: list[Tensor]) -> None:
        super().__init__()
        self._mode = FakeTensorMode()
        self._twins: dict[int, Tensor] = {}
        self._kept = {_memory(self._twin(t)) for t in kept}
        self._values: dict[fx.Node, Any] = {}
        self._found: str | None = None

    def obstacle(self, nodes: list[fx.Node]) -> str | None:
        """What the first node that can't be repeated does, or None."""
        for node in nodes:
            if node.op in ("placeholder", "get_attr") and isinstance(_example(node), FakeTensor):
                self._kept.add(_memory(self._twin(_example(node))))
        with torch.no_grad(), self._mode, self:
            for node in nodes:
                if node.op in ("call_function", "call_method") and self._found is None:
                    self._run(node)
        return self._found

    def _run(self, node: fx.Node) -> None:
        if isinstance(node.target, HigherOrderOperator):
            self._found = f"contains {node.target}, into which is not looked"
            return
        if node.target == "item":
            return  # a setting of a module, as a symbol
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._value)
        if callable(node.target):
            call = node.target
        else:
            call, args = getattr(args[0], node.target), args[1:]
        try:
            self._values[node] = call(*args, **kwargs)
        except Exception as error:
            self._found = f"contains {node.target}, which could not be examined ({error})"

    def _value(self, node: fx.Node) -> Any:
        if node in self._values:
            return self._values[node]
        return tree_map(self._static, _example(node))

    def _static(self, value: Any) -> Any:
        """A value of the trace with numbers in the place of symbols."""
        if isinstance(value, Tensor):
            return self._twin(value)
        return value.node.hint if isinstance(value, torch.SymInt | torch.SymFloat) else value

    def _twin(self, tensor: Tensor) -> Tensor:
        """A tensor without numbers of the same kind, to be run on."""
        if id(tensor) not in self._twins:
            size, stride = (tuple(map(self._static, s)) for s in (tensor.shape, tensor.stride()))
            with self._mode:
                self._twins[id(tensor)] = torch.empty_strided(
                    size, stride, dtype=tensor.dtype, device=tensor.device
                )
        return self._twins[id(tensor)]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        names = [argument.name for argument in func._schema.arguments]
        given = dict(zip(names, args, strict=False)) | kwargs
        if torch.Tag.nondeterministic_seeded in func.tags and not _is_off(given):
            self._found = f"draws random numbers ({func}), and the repetition would draw others"
        elif self._writes(func, given):
            self._found = (
                f"changes its input, a buffer or a parameter in place ({func}), and would do so "
                "twice"
            )
        return func(*args, **kwargs)

    def _writes(self, func: Any, given: dict[str, Any]) -> bool:
        """Whether the operator writes into memory that is to be kept."""
        if given.get("running_mean") is not None and given.get("training", True):
            return True  # not all batch norms say so in their schema
        written = [
            given.get(argument.name)
            for argument in func._schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        return any(_memory(t) in self._kept for t in tree_leaves(written) if isinstance(t, Tensor))


def _is_off(given: dict[str, Any]) -> bool:
    """Whether a random operator draws nothing with these arguments."""
    if given.get("training") is False or given.get("train") is False:
        return True
    return given.get("dropout_p") == 0 or given.get("p") == 0


def _memory(tensor: Tensor) -> int:
    memory: int = tensor.untyped_storage()._cdata
    return memory
