"""Look at what a layer was traced to by `torch.compile`, and refuse what can't be repeated.

A sequence that runs as one node evaluates each sub-network twice, and nobody brings random numbers
or buffers back for the second time. What a sub-network does shows in the operators of its graph:
they are run once more here, on tensors without numbers, at the time of compiling.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx
from torch._dynamo.comptime import ComptimeContext, comptime
from torch._subclasses.fake_tensor import FakeTensor
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
    context.graph_break(f"{reason}. {ADVICE}.")


def _look(context: ComptimeContext) -> None:
    where = context.get_local("where").as_python_constant()
    streams = _examples(context.get_local("streams").as_proxy())
    tensors = _examples(context.get_local("tensors").as_proxy())
    nodes = [node for node in context.graph().nodes if not node.meta.get(_SEEN)]
    for node in nodes:
        node.meta[_SEEN] = True
    reason = _obstacle(nodes, streams, tensors)
    output = context._i_will_not_complain_if_bc_breaks_InstructionTranslator().output
    if reason is None and getattr(output, "random_calls", None):
        reason = "Python's random numbers, of which the repetition would draw others"
    if reason is not None:
        context.graph_break(f"{where}: a sub-network {reason}. {ADVICE}.")


def _examples(proxies: Any) -> list[Tensor]:
    return [proxy.node.meta["example_value"] for proxy in tree_leaves(proxies)]


def _obstacle(
    nodes: Iterable[fx.Node], streams: list[Tensor], tensors: list[Tensor]
) -> str | None:
    """Why what the nodes do can't be repeated, or None."""
    known = set(map(id, tensors))
    foreign = {_memory(t) for t in (*streams, *tensors)}
    watch = _Watch(foreign)
    for node in nodes:
        example = node.meta.get("example_value")
        if node.op == "placeholder" and isinstance(example, FakeTensor):
            if example.requires_grad and id(example) not in known:
                return (
                    f"uses a tensor of shape {tuple(example.shape)} that requires a gradient but "
                    "is no parameter of the layer and no argument; its gradient would be lost"
                )
            foreign.add(_memory(example))
        elif node.op in ("call_function", "call_method"):
            watch.run(node)
    return watch.found


class _Watch(TorchDispatchMode):
    """Runs nodes again without numbers, and finds the operator that speaks against it.

    Args:
        foreign: The memory that must not be written into.
    """

    def __init__(self, foreign: set[int]) -> None:
        super().__init__()
        self.foreign = foreign
        self.found: str | None = None

    def run(self, node: fx.Node) -> None:
        """Run a node on what its arguments were traced with."""
        def example(value: Any) -> Any:
            if not isinstance(value, fx.Node):
                return value
            found = value.meta.get("example_value")
            return found.detach() if isinstance(found, Tensor) else found

        args, kwargs = fx.node.map_aggregate((node.args, node.kwargs), example)
        fakes = [t for t in tree_leaves((args, kwargs)) if isinstance(t, FakeTensor)]
        mode = fakes[0].fake_mode if fakes else None
        print(node.format_node(), type(node.target))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        if torch.Tag.nondeterministic_seeded in func.tags and not _is_off(given):
            self.found = f"draws random numbers ({func}), and the repetition would draw others"
        return func(*args, **kwargs)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
