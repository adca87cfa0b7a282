"""Run a step on tensors without data, and record what its storages would take.

The tensors are PyTorch's fake tensors: meta tensors that say they are on the CPU. Of each operator
only the rule for shapes runs, and which operators run is decided as on the CPU. (Plain meta tensors
know no autocast, and their attention always takes the way that stores all weights.)
"""

from __future__ import annotations

import copy
import functools
import importlib
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from .events import Event, Kind

aten = torch.ops.aten


def _cast_operands(*args: Any) -> int:
    """Bytes of the copies that the CPU makes of operands to compute in a wider type.

    Under autocast a coupling adds a sub-network's half-precision value to a float32 stream. CUDA
    casts number by number.
    """
    operands = [a for a in args if _is_tensor(a) and a.dim() > 0]
    if not operands:
        return 0
    wide = functools.reduce(torch.promote_types, (a.dtype for a in operands))
    return sum(a.numel() * wide.itemsize for a in operands if a.dtype != wide)


# What operators of the CPU hold while they run, beside their results, where it is an activation.
_INSIDE_CPU: dict[Any, Callable[..., int]] = {
    aten.native_batch_norm_backward.default: lambda grad, x, *_: x.nbytes,
    **dict.fromkeys((aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor), _cast_operands),
    **dict.fromkeys((aten.add_.Tensor, aten.sub_.Tensor, aten.mul_.Tensor), _cast_operands),
}


class Shadows:
    """Makes copies without data of tensors and modules; what shared memory shares it again."""

    def __init__(self) -> None:
        # The first operator on a shadow would do so, and make its tensors without data as well.
        importlib.import_module("torch._dynamo")
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._storages: dict[int, tuple[Any, torch.UntypedStorage]] = {}

    def of_tensor(self, tensor: Tensor) -> Tensor:
        """The tensor's shadow, a leaf on the "CPU" with its shape, strides and type."""
        original = tensor.untyped_storage()
        with self.fake, torch.no_grad():
            if original._cdata not in self._storages:
                bytes_ = torch.empty(original.nbytes(), dtype=torch.uint8, device="cpu")
                self._storages[original._cdata] = original, bytes_.untyped_storage()
            shadow = torch.empty(0, dtype=tensor.dtype, device="cpu")
            _, storage = self._storages[original._cdata]
            shadow.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())
        return shadow.requires_grad_(tensor.requires_grad)

    def of_module(self, module: nn.Module) -> nn.Module:
        """A copy of the module in which every tensor is a shadow."""
        with _Copying(self):
            return copy.deepcopy(module)

    def of_tree(self, tree: Any) -> Any:
        """The same for tensors among other things in tuples, lists and dictionaries."""
        return tree_map(lambda leaf: self.of_tensor(leaf) if _is_tensor(leaf) else leaf, tree)


class _Copying(TorchFunctionMode):
    """While it is on, `copy.deepcopy` makes shadows of tensors."""

    def __init__(self, shadows: Shadows) -> None:
        super().__init__()
        self._shadows = shadows

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # A parameter's copy clones its data; other tensors copy themselves.
        if func is torch._C.TensorBase.clone:
            return self._shadows.of_tensor(args[0])
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            return memo.setdefault(id(tensor), self._shadows.of_tensor(tensor))
        return func(*args, **(kwargs or {}))


class Recorder(TorchDispatchMode):
    """While it is on, every storage of a shadow that comes and goes is an event.

    Attributes:
        events: The recording; an event's time is its number, and an address is that of no other
            storage, ever.
    """

    def __init__(self, shadows: Shadows, *, on_cuda: bool = True) -> None:
        super().__init__()
        self._inside = {} if on_cuda else _INSIDE_CPU
        self.events: list[Event] = []
        self._fake = shadows.fake
        self._addresses: dict[int, int] = {}  # of the storages that are alive, by identity
        self._sizes: dict[int, int] = {}
        self._new = 0
        self._in_backward = False
        self._sum: tuple[int, int] | None = None  # addresses of a sum of gradients and of a summand
        self._closed = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        if any(map(_dispatches_itself, types)):
            return NotImplemented  # the operators that the subclass calls come by one by one
        if any(map(_is_tensor, tree_leaves((args, kwargs)))):
            result = func(*args, **kwargs)
        else:
            with self._fake:  # nothing is filled with numbers
                result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, FakeTensor):
                self.watch(leaf)
        inside = self._inside[func](*args) if func in self._inside else 0
        if inside:
            self._pass(inside)
        if func is aten.add.Tensor and _called_by_engine() and _is_tensor(args[1]):
            self._sum = self.address(result), self.address(args[0])
        return result

    def watch(self, tensor: Tensor) -> None:
        """Record the tensor's storage, unless that was done."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._addresses:
            if self._sizes[key] != size:
                self._free(key)
                self._allocate(key, size)
            return
        self._allocate(key, size)
        weakref.finalize(storage, self._gone, key).atexit = False

    def address(self, tensor: Tensor) -> int:
        """The address of a recorded tensor's storage."""
        return self._addresses[tensor.untyped_storage()._cdata]

    def mark(self, kind: Kind, tensor: Tensor | None, number: int = 0) -> None:
        """Put a mark into the recording, if the tensor is a recorded one."""
        if isinstance(tensor, FakeTensor):
            self._record(kind, self.address(tensor), number=number)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """As the mode itself; afterwards, nothing is recorded any more."""
        try:
            with self:
                yield
        finally:
            self._closed = True

    def _pass(self, size: int) -> None:
        """Record memory that an operator holds while it runs."""
        self._new += 1
        self._record(Kind.ALLOCATED, self._new, size)
        self._record(Kind.FREED, self._new, size)

    def _allocate(self, key: int, size: int) -> None:
        self._new += 1
        self._addresses[key], self._sizes[key] = self._new, size
        self._record(Kind.ALLOCATED, self._new, size)

    def _gone(self, key: int) -> None:
        if not self._closed:
            self._free(key)

    def _free(self, key: int) -> None:
        address, size = self._addresses.pop(key), self._sizes.pop(key)
        if self._sum is not None and address == self._sum[1]:
            self._sum_in_place(self._sum[0], address)
        else:
            self._record(Kind.FREED, address, size)

    def _sum_in_place(self, total: int, summand: int) -> None:
        """Take back that a sum of gradients took memory of its own.

        The engine adds gradients that meet into the first one, if nobody else holds it; but not
        those of a subclass of tensors, as shadows are.
        """
        place = next(key for key, address in self._addresses.items() if address == total)
        self._addresses[place] = summand
        del self.events[-1]
        self._sum = None

    def _record(self, kind: Kind, address: int, size: int = 0, number: int = 0) -> None:
        in_backward = torch._C._current_graph_task_id() != -1
        if in_backward and not self._in_backward:
            self.events.append(Event(len(self.events), Kind.NODE))
        self._in_backward = in_backward
        self._sum = None
        time = len(self.events)
        self.events.append(Event(time, kind, address, size, in_backward=in_backward, number=number))


def _is_tensor(leaf: object) -> bool:
    return isinstance(leaf, Tensor)


def _dispatches_itself(kind: type) -> bool:
    """Whether operators of a type of tensors other than shadows run in its own Python code."""
    own = kind.__torch_dispatch__ is not Tensor.__torch_dispatch__  # type: ignore[attr-defined]
    return own and not issubclass(kind, FakeTensor)


def _called_by_engine() -> bool:
    """Whether the operator at work was called by the autograd engine itself, not by Python."""
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_code.co_name == "_fn":  # around every dispatch mode
        frame = frame.f_back
    return frame is not None and frame.f_code.co_name == "_engine_run_backward"
