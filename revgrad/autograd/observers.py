"""Who wants to know what the nodes of a tape do: what they store, how well they compute back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from revgrad.autograd.layout import memory_of
from revgrad.autograd.protocol import State
from revgrad.errors import ReversibleError
from revgrad.fixed_point import FixedPoint

StoredListener = Callable[[str, State], None]


class _Local(threading.local):
    stored: StoredListener | None = None
    check: ReconstructionCheck | None = None


_local = _Local()


# --- what is stored -----------------------------------------------------------------------------


@contextmanager
def listening_to_stored(listener: StoredListener) -> Iterator[None]:
    """Tell `listener` of each layer that stores streams inside: its name and the tensors."""
    before = _local.stored
    _local.stored = listener
    try:
        yield
    finally:
        _local.stored = before


def announce_stored(where: str, streams: State) -> None:
    """Say that the layer `where` stores `streams`."""
    if _local.stored is not None and streams:
        _local.stored(where, tuple(map(memory_of, streams)))


# --- how well is computed back ------------------------------------------------------------------


class ReconstructionCheck:
    """Compares what each layer computes back with what it got in the forward pass.

    Attributes:
        deviations: The largest difference by layer, in the order of the backward pass, 0 where all
            bits are equal.
    """

    def __init__(self) -> None:
        self.deviations: dict[str, float] = {}

    def expect(self, where: str, inputs: State) -> Callable[[State], None]:
        """Keep a layer's input; the result compares it with the one computed back."""
        kept = tuple(memory_of(x).detach().clone() for x in inputs)

        def compare(again: State) -> None:
            self._note(where, kept, again)

        return compare

    def _note(self, where: str, kept: State, again: State) -> None:
        for before, after in zip(kept, again, strict=True):
            exact = isinstance(after, FixedPoint)
            different = before != memory_of(after.detach())
            count = int(different.sum())
            if exact and count:
                raise ReversibleError(
                    f"{count} of {before.numel()} numbers of the input are computed back "
                    "differently: a sub-network did not give the same bits twice. Is one of its "
                    "operations not deterministic (torch.use_deterministic_algorithms), or does "
                    "it use anything that changes between forward and backward pass?"
                )
            size = 0.0 if exact or not count else float((before - after.detach()).abs().max())
            self.deviations[where] = max(size, self.deviations.get(where, 0.0))

    def __str__(self) -> str:
        if not self.deviations:
            return "no reversible layer ran backward"
        width = max(map(len, self.deviations))
        rows = (f"{where:<{width}}  {size:.2e}" for where, size in self.deviations.items())
        return "\n".join(("largest deviation of the input computed back, by layer:", *rows))


@contextmanager
def check_reconstruction() -> Iterator[ReconstructionCheck]:
    """Store each layer's input, too, and compare it with the one that is computed back.

    For a few training steps, forward and backward pass, when a network is new::

        with revgrad.check_reconstruction() as check:
            loss(net(x)).backward()
        print(check)

    In exact arithmetic any difference raises a `ReversibleError` that names the layer: one of its
    sub-networks is not deterministic. In floating-point arithmetic the result tells how far each
    layer's input has drifted. It takes the memory of storing all streams, and waits for the device.
    """
    before, check = _local.check, ReconstructionCheck()
    _local.check = check
    try:
        yield check
    finally:
        _local.check = before


def current_check() -> ReconstructionCheck | None:
    """The check that is on in this thread."""
    return _local.check
