"""The end of a sub-network, fused with the sum of a coupling.

A sub-network that ends with a fused operator can add its value to a stream in the same pass over
memory, so that the value itself never exists: neither in the forward pass nor when the stream is
computed back. The class of the module at the end says so by the decorator `tail`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from revgrad.autograd.inventory import has_hooks
from revgrad.dataless import device_type, has_data
from revgrad.errors import ReversibleError
from revgrad.fixed_point import FixedPoint
from revgrad.fixed_point.range_watch import current_watch


class Statistics(NamedTuple):
    """What a tail keeps of a value for its gradients.

    Attributes:
        mean: Means of what is normalised together; these or rstd are not finite if a value is not.
        rstd: 1 / sqrt(variance + eps).
        settings: Those of the operator.
        constant: Whether the two were given, and are not those of the input.
    """

    mean: Tensor
    rstd: Tensor
    settings: Any
    constant: bool


class Tail(Protocol):
    """A module that can add its value to a stream, and give its gradients afterwards."""

    def can_add_to(self, stream: Tensor) -> bool:
        """Whether it can for an input of the stream's shape."""

    def update_(
        self, stream: Tensor, x: Tensor, *, sign: int, fraction_bits: int | None
    ) -> Statistics:
        """Add the value at `x` to `stream` in place, or subtract it; without autograd.

        Args:
            stream: The shape of the value, floats or int32 on the grid of `fraction_bits`.
            x: The module's input.
            sign: 1 or -1.
            fraction_bits: Binary digits behind the point of an int32 stream.

        Returns:
            What `gradients` needs beside the input.
        """

    def updated(
        self, stream: Tensor, x: Tensor, *, sign: int, fraction_bits: int | None
    ) -> tuple[Tensor, Statistics]:
        """The same in new memory: the stream stays as it is, and the sum comes back."""

    def gradients(
        self, dy: Tensor, x: Tensor, statistics: Statistics
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The gradient of the input, and each parameter with its own."""

    def largest(self, shape: Sequence[int]) -> Tensor:
        """A bound of the size of a value of this shape, whatever the input; a scalar."""


_TAILS: set[type] = set()
_Class = TypeVar("_Class", bound=type)


def tail(cls: _Class) -> _Class:
    """Say of a module class, not of its subclasses, that it has the methods of `Tail`."""
    _TAILS.add(cls)
    return cls


@dataclass(frozen=True)
class Cut:
    """A sub-network cut before its tail.

    Attributes:
        head: What runs before, in order.
        tail: The end.
    """

    head: tuple[nn.Module, ...]
    tail: Any

    def before(self, x: Tensor) -> Tensor:
        """The input of the tail."""
        for module in self.head:
            x = module(x)
        return x

    def sum(self, stream: Tensor, x: Tensor) -> Tensor:
        """`stream` plus the value at `x`, in new memory; without autograd."""
        h = self.before(x)
        with torch.no_grad():
            _expect_fitting(h, stream)
            if not isinstance(stream, FixedPoint):
                return self.tail.updated(stream, h, sign=1, fraction_bits=None)[0]
            bits = stream.grid.fraction_bits
            integers, statistics = self.tail.updated(stream.integers, h, sign=1, fraction_bits=bits)
            watch = current_watch()
            bound = None
            if watch is not None:
                finite = statistics.mean.sum() + statistics.rstd.sum()
                largest = self.tail.largest(h.shape) + 0 * finite
                bound = watch.of_sum(stream, integers, largest, "the value of the sub-network")
            return FixedPoint(integers, stream.grid, bound)

    def undo(self, stream: Tensor, h: Tensor) -> tuple[Tensor, Statistics]:
        """`stream` minus the value, given the tail's input, in place; without autograd."""
        with torch.no_grad():
            numbers, bits = stream, None
            if isinstance(stream, FixedPoint):
                numbers, bits = stream.integers, stream.grid.fraction_bits
            return stream, self.tail.update_(numbers, h, sign=-1, fraction_bits=bits)


def cut(module: nn.Module, stream: Tensor) -> Cut | None:
    """Cut a sub-network before its tail, where that can be fused with the sum.

    Args:
        module: The sub-network.
        stream: What its value is added to.
    """
    found = _ends(module)
    if found is None or not found.tail.can_add_to(stream):
        return None
    if not isinstance(stream, FixedPoint):
        return found
    # Of a value that is never seen only a bound is known, and it takes a look to compare it.
    if device_type(stream) != "cpu":
        return None
    bound = found.tail.largest(stream.shape)
    return None if has_data(bound) and bound.item() >= stream.grid.limit / 2 else found


def _ends(module: nn.Module) -> Cut | None:
    """The tail of a module and what runs before, if nothing of somebody else's runs around it.

    What is compiled is not taken apart.
    """
    if has_hooks(module) or module._compiled_call_impl is not None:
        return None
    if type(module) is not nn.Sequential:
        return Cut((), module) if type(module) in _TAILS else None
    modules = [m for m in module if type(m) is not nn.Identity or has_hooks(m)]
    found = _ends(modules[-1]) if modules else None
    return None if found is None else Cut((*modules[:-1], *found.head), found.tail)


def _expect_fitting(h: Tensor, stream: Tensor) -> None:
    """Refuse the input of a tail whose value can't be added."""
    if h.shape != stream.shape:
        raise ReversibleError(
            f"the sub-network gave shape {tuple(h.shape)}, but the stream that it is added to has "
            f"shape {tuple(stream.shape)}"
        )
    if torch.promote_types(h.dtype, stream.dtype) != stream.dtype:
        raise ReversibleError(
            f"the sub-network gave {h.dtype}, which does not fit into a stream of {stream.dtype}; "
            "convert its result, or the input of the sequence"
        )
