"""Notice without waiting for the device when fixed-point numbers leave their range.

An integer sum that is too large wraps around. It can still be taken back, but what the
sub-networks see is garbage, so no gradient may come of it. Every value and every sum of a forward
pass leaves an upper bound of its size on the device. At the end of the pass these are sent to the
host. Where that takes time (on a GPU), the pass goes on: if a bound was too large, the output and
its gradient become NaN on the device, and the next call that finds the bounds arrived raises an
error that names the layer.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from revgrad.dataless import has_data
from revgrad.errors import ReversibleError

if TYPE_CHECKING:
    from revgrad.fixed_point.grid import Grid

# Bounds are float32, whose sums are off by up to 2**-24 of 2**31.
_LIMIT = 2.0**31 - 2.0**10


@dataclass(frozen=True)
class _Note:
    """One bound: whose it is, and what it is of."""

    where: str | None
    what: str
    grid: Grid

    def error(self, bound: float) -> ReversibleError:
        if not math.isfinite(bound):
            return ReversibleError(
                f"{self.what} is not finite (NaN or infinite), which exact arithmetic can't hold",
                self.where,
            )
        bits = self.grid.fraction_bits
        return ReversibleError(
            f"{self.what} reaches {bound * self.grid.step:.4g} in size, but with fraction_bits="
            f"{bits} numbers must stay below {self.grid.limit:g}. Take fewer fraction_bits "
            "(revgrad.suggest_fraction_bits finds a number), normalise, or use "
            'arithmetic="float"',
            self.where,
        )


class Watched(Protocol):
    """A fixed-point tensor, as far as its range goes."""

    integers: Tensor
    grid: Grid
    bound: Tensor | None


@dataclass
class _Unseen:
    """An operand that exists as a bound only."""

    integers: Tensor
    grid: Grid
    bound: Tensor | None


class RangeWatch:
    """Collects the bounds of one forward pass.

    Args:
        at_once: Wait for each bound and raise where it is left, instead of at the end.

    Attributes:
        where: The layer that is running, for messages.
    """

    def __init__(self, at_once: bool = False) -> None:
        self.where: str | None = None
        self._at_once = at_once
        self._notes: list[_Note] = []
        self._bounds: list[Tensor] = []

    def of_value(self, value: Tensor, grid: Grid, what: str) -> Tensor:
        """Note a float value that is about to be rounded; returns its bound in steps of the grid.

        The half step that rounding may add is within the limit's slack.
        """
        bound = _largest(value.detach()) * 2.0**grid.fraction_bits
        self._note(what, grid, bound)
        return bound

    def of_sum(self, stream: Watched, integers: Tensor, largest: Tensor, what: str) -> Tensor:
        """Note a sum with a value of which only a bound is known; see `of_value`, `of_stream`.

        Args:
            stream: What the value was added to.
            integers: The sum.
            largest: The bound.
            what: What the value is, for messages.
        """
        bound = largest * 2.0**stream.grid.fraction_bits
        self._note(what, stream.grid, bound)
        value: Watched = _Unseen(stream.integers[:0], stream.grid, bound)
        return self.of_stream([stream, value], integers)

    def of_stream(
        self,
        operands: Sequence[Watched],
        integers: Tensor,
        growth: float = 1.0,
        inside: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        """Note a bound of integers that were computed from others; returns one as good or better.

        Args:
            operands: What the integers were computed from.
            integers: The result.
            growth: The result is at most this times as large as the operands together.
            inside: Gives a better bound of what arises on the way, where that one is too large.
        """
        bound = growth * sum(map(self.bound_of, operands), torch.zeros((), device=integers.device))
        # Sums of bounds grow with depth where the stream does not. Where looking at a number costs
        # no waiting, streams are only measured again when a bound has become large.
        at_once = answers_at_once(bound.device) and has_data(bound)
        if at_once and not bound.item() < _LIMIT / 2:
            for x in operands:
                if not isinstance(x, _Unseen):
                    x.bound = _largest(x.integers)
            bound = growth * sum(map(self.bound_of, operands), torch.zeros_like(bound))
        if inside is not None and not (at_once and bound.item() < _LIMIT / 2):
            bound = inside()
        self._note("the stream", operands[0].grid, bound)
        return bound if at_once and bound.item() < _LIMIT / 2 else _largest(integers)

    @staticmethod
    def bound_of(x: Watched) -> Tensor:
        """A bound of the size of a stream, measured if nobody has told one."""
        if x.bound is None:
            x.bound = _largest(x.integers)
        return x.bound

    def finish(self, wait: bool = False) -> Tensor | None:
        """Judge the pass, or send the bounds to the host to be judged later.

        Args:
            wait: Judge it now, because its output can't become NaN.

        Returns:
            None if all is well, or a scalar to multiply output and gradient with: 1 or, if a
            number has left its range, NaN.
        """
        if not self._bounds or self._at_once:
            return None
        device = self._bounds[-1].device
        bounds = torch.stack([b.to(device, non_blocking=True) for b in self._bounds])
        known = has_data(bounds)
        if wait or (answers_at_once(device) and known):
            if known:
                self._judge(bounds)
            return None
        if known:
            _pending.append((self._judge, Parcel(bounds)))
        return torch.where((bounds < _LIMIT).all(), 1.0, math.nan)

    def _note(self, what: str, grid: Grid, bound: Tensor) -> None:
        # An error that is raised here passes through the layer's own call, which names the layer.
        note = _Note(None if self._at_once else self.where, what, grid)
        if self._at_once:
            value = bound.item() if has_data(bound) else 0.0
            if not value < _LIMIT:
                raise note.error(value)
            return
        self._notes.append(note)
        self._bounds.append(bound)

    def _judge(self, bounds: Tensor) -> None:
        for note, bound in zip(self._notes, bounds.tolist(), strict=True):
            if not bound < _LIMIT:
                raise note.error(bound)


def _largest(x: Tensor) -> Tensor:
    """The largest size of the elements, a float32 scalar; NaN if one is NaN."""
    if x.numel() == 0:
        return torch.zeros((), device=x.device)
    low, high = torch.aminmax(x)
    return torch.maximum(-low.float(), high.float())


class Parcel:
    """A copy of a tensor on its way to the host."""

    def __init__(self, tensor: Tensor) -> None:
        self._values = torch.empty_like(tensor, device="cpu", pin_memory=True)
        self._values.copy_(tensor, non_blocking=True)
        self._arrived = torch.Event(tensor.device)
        self._arrived.record()

    def has_arrived(self) -> bool:
        """Whether the values are there; never waits."""
        return self._arrived.query()

    def values(self) -> Tensor:
        """The values on the host; waits for them."""
        self._arrived.synchronize()
        return self._values


def answers_at_once(device: torch.device) -> bool:
    """Whether reading a number from the device costs no waiting."""
    return device.type == "cpu"


_pending: list[tuple[Callable[[Tensor], None], Parcel]] = []
_lock = threading.Lock()


def raise_pending() -> None:
    """Raise the error of an earlier pass whose bounds have arrived since. Never waits."""
    with _lock:
        arrived = [entry for entry in _pending if entry[1].has_arrived()]
        for entry in arrived:
            _pending.remove(entry)
    for judge, parcel in arrived:
        judge(parcel.values())


class _Local(threading.local):
    watch: RangeWatch | None = None


_local = _Local()


def current_watch() -> RangeWatch | None:
    """The watch over the running forward pass."""
    return _local.watch


@contextmanager
def watching(watch: RangeWatch | None) -> Iterator[None]:
    """Let `watch` collect the bounds of what runs inside."""
    before = _local.watch
    _local.watch = watch
    try:
        yield
    finally:
        _local.watch = before
