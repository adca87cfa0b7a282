"""What must be known of somebody's network before modules in it are replaced."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from typing import Any

from torch import fx, nn


def runs_in_order(module: nn.Module) -> bool:
    """Whether children run one after the other: a Sequential or a subclass that adds nothing."""
    return (
        isinstance(module, nn.Sequential)
        and type(module).forward is nn.Sequential.forward
        and type(module).__iter__ is nn.Sequential.__iter__
        and "forward" not in vars(module)
    )


def order_of_children(module: nn.Module) -> tuple[str, ...] | None:
    """Names of the children, in the order in which each takes the result of the one before.

    A Sequential says it by itself. The `forward` of any other module of the user's is traced, in
    training and in evaluation. A child may be called several times, and then stands there as often.

    Returns:
        None if `forward` does anything else, or what it does depends on data or mode.
    """
    if "forward" in vars(module) or type(module).__call__ is not nn.Module.__call__:
        return None  # what runs is not the class's forward alone
    if runs_in_order(module):
        return tuple(module._modules)
    if type(module).__module__.startswith("torch.") or not module._modules:
        return None
    training, evaluation = (_traced(module, mode) for mode in (True, False))
    return training if training == evaluation else None


class _ChildrenTracer(fx.Tracer):
    """Looks into one `forward` and no further."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _traced(module: nn.Module, training: bool) -> tuple[str, ...] | None:
    try:
        shell = _shell(module)  # what `forward` sets on itself stays there
        shell.training = training
        before = _entries(shell)
        nodes = list(_ChildrenTracer().trace(shell).nodes)
    except Exception:  # whatever the user's code says to a tensor without numbers
        return None
    if _entries(shell) != before:
        return None  # it keeps a value that somebody may want
    return _chain(nodes)


def _shell(module: nn.Module) -> nn.Module:
    """A copy with containers and buffers of its own, which `forward` may write into."""
    shell = copy.copy(module)
    for key, value in vars(module).items():
        if isinstance(value, list | dict | set):
            vars(shell)[key] = copy.copy(value)
    for key, buffer in module._buffers.items():
        shell._buffers[key] = None if buffer is None else buffer.detach().clone()
    return shell


def _entries(module: nn.Module) -> dict[str, list[int]]:
    """By attribute, the identities of its value and of what that contains."""
    found = {}
    for key, value in vars(module).items():
        inside = [*value] if isinstance(value, list | dict | set) else []
        inside += [*value.values()] if isinstance(value, dict) else []
        found[key] = [id(part) for part in (value, *inside)]
    del found["_buffers"]  # a result would not be taken there, and counters may go on
    return found


def _chain(nodes: list[fx.Node]) -> tuple[str, ...] | None:
    """The children that a graph calls, if it is one row of calls from its one input on."""
    if len(nodes) < 2 or [n.op for n in nodes].count("placeholder") != 1:
        return None
    inner = nodes[1:-1]
    chained = (node.args == (before,) for before, node in itertools.pairwise(nodes))
    calls = all(n.op == "call_module" and not n.kwargs and "." not in str(n.target) for n in inner)
    return tuple(str(n.target) for n in inner) if calls and all(chained) else None


def changed(module: nn.Module) -> str:
    """What was added to one of torch's modules that a replacement would lose; empty if nothing."""
    if has_hooks(module):
        return "has hooks"
    if "forward" in vars(module):
        return "has a forward of its own"
    extra = set(module._buffers) - {"running_mean", "running_var", "num_batches_tracked"}
    if module._modules or extra or set(module._parameters) - {"weight", "bias"}:
        return "has modules, parameters or buffers of its own"
    return ""


def has_hooks(module: nn.Module) -> bool:
    """Whether anybody listens to the module."""
    return any(value for key, value in vars(module).items() if key.endswith("_hooks"))


def joined(path: str, name: str) -> str:
    """The path of a child."""
    return f"{path}.{name}" if path else name


class Uses:
    """Who owns the modules and parameters of a network.

    Args:
        root: The network.
    """

    def __init__(self, root: nn.Module) -> None:
        self._places: dict[int, set[tuple[int, str]]] = {}
        self._owners: Counter[int] = Counter()
        for module in root.modules():
            for name, child in module._modules.items():
                self._places.setdefault(id(child), set()).add((id(module), name))
            self._owners.update(id(p) for p in module._parameters.values() if p is not None)

    def shared(self, container: nn.Module, name: str) -> bool:
        """Whether weights of a child have a place outside of it too."""
        child: Any = container._modules[name]
        inside = {id(module) for module in child.modules()}
        for module in child.modules():
            weights = [id(p) for p in module._parameters.values() if p is not None]
            if any(self._owners[p] > 1 for p in weights):
                return True
            own = {(id(container), name)} if module is child else set()
            strangers = {p for p in self._places[id(module)] - own if p[0] not in inside}
            if strangers and any(True for _ in (*module.parameters(), *module.buffers())):
                return True
        return False
