"""The fastest schedule whose layers keep no more than an allowance of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from revgrad.nn.schedule import INVERT, RECOMPUTE, STORE

_UNITS = 2048  # into which an allowance is divided
_WAYS = (INVERT, RECOMPUTE, STORE)
_ON_TAPE = (False, True)  # whether a layer is a node of a tape


@dataclass(frozen=True)
class Cost:
    """What the ways of a layer keep and save, against inverting it.

    Attributes:
        recompute: Bytes of its input.
        store: Bytes that ordinary autograd keeps of it.
        state: Bytes, besides `store`, of the state before it, which is stored where a tape ends.
        invert_space: Bytes that its step back takes besides, inverted or recomputed.
        store_space: The same, stored.
        recompute_seconds: By how much recomputing is faster than inverting.
        store_seconds: By how much storing is.
        state_seconds: How long the end of a tape takes in a backward pass.
        first: Whether it is the first layer of a sequence, before which there is no tape.
    """

    recompute: int
    store: int
    state: int
    invert_space: int
    store_space: int
    recompute_seconds: float
    store_seconds: float
    state_seconds: float = 0.0
    first: bool = False

    def of(self, way: str, ends_tape: bool) -> tuple[int, float]:
        """Bytes and seconds saved of a way; `ends_tape`: a tape runs up to the layer."""
        if way == INVERT:
            return 0, 0.0
        if way == RECOMPUTE:
            return self.recompute, self.recompute_seconds
        if ends_tape:
            return self.store + self.state, self.store_seconds - self.state_seconds
        return self.store, self.store_seconds

    def space(self, way: str) -> int:
        """Bytes that the step back takes besides what is kept."""
        return self.store_space if way == STORE else self.invert_space


def total(costs: Sequence[Cost], ways: Sequence[str]) -> tuple[int, float]:
    """Bytes and seconds saved of a schedule."""
    kept, saved, on_tape = 0, 0.0, False
    for cost, way in zip(costs, ways, strict=True):
        size, seconds = cost.of(way, on_tape and not cost.first)
        kept, saved, on_tape = kept + size, saved + seconds, way != STORE
    return kept, saved


def fastest(costs: Sequence[Cost], allowance: int) -> list[str]:
    """The schedule that saves the most seconds among those that fit.

    What the layers up to each one keep, and the space that its step back takes, may together be no
    more than the allowance and the largest space of an inverted layer: what later layers keep has
    gone by then.

    A knapsack, solved exactly by dynamic programming over the layers, the bytes kept so far and
    whether the layer before is on a tape. Bytes count in units of 1/2048 of what may be kept, to
    which each layer's are rounded: of n layers at most n/2 units are then neglected or counted too
    much. Of equally fast schedules the one that keeps least is taken.

    Args:
        costs: Of each layer, in the order of the forward pass.
        allowance: Bytes by which the peak may be larger than with all layers inverted.
    """
    limits = _limits(costs, allowance)
    most = max((limit for by_way in limits for limit in by_way.values()), default=0)
    unit = max(1, -(-most // _UNITS))
    best = {on_tape: np.full(max(most, 0) // unit + 1, -np.inf) for on_tape in _ON_TAPE}
    best[False][0] = 0.0
    steps: list[dict[bool, NDArray[np.int8]]] = []
    for cost, by_way in zip(costs, limits, strict=True):
        best, chosen = _after(best, cost, by_way, unit)
        steps.append(chosen)
    return _traced(costs, steps, best, unit)


def _limits(costs: Sequence[Cost], allowance: int) -> list[dict[str, int]]:
    """What may be kept up to each layer, by its way."""
    largest = max((cost.invert_space for cost in costs), default=0)
    return [{way: allowance + largest - cost.space(way) for way in _WAYS} for cost in costs]


def _after(
    best: dict[bool, NDArray[np.float64]], cost: Cost, limits: dict[str, int], unit: int
) -> tuple[dict[bool, NDArray[np.float64]], dict[bool, NDArray[np.int8]]]:
    """The most seconds by bytes kept after one more layer, and by which choice."""
    found = {on_tape: np.full_like(best[on_tape], -np.inf) for on_tape in _ON_TAPE}
    chosen = {on_tape: np.zeros(len(best[on_tape]), np.int8) for on_tape in _ON_TAPE}
    for number, (before, way) in enumerate(product(_ON_TAPE, _WAYS)):
        size, seconds = cost.of(way, before and not cost.first)
        shift = round(size / unit)
        seen = best[before]
        if shift >= len(seen):
            continue
        reached = np.full_like(seen, -np.inf)
        reached[shift:] = seen[: len(seen) - shift] + seconds
        reached[max(limits[way] // unit + 1, 0) :] = -np.inf  # below 0 not even nothing fits
        target = way != STORE
        better = reached > found[target]
        found[target][better] = reached[better]
        chosen[target][better] = number
    return found, chosen


def _traced(
    costs: Sequence[Cost],
    steps: Sequence[dict[bool, NDArray[np.int8]]],
    best: dict[bool, NDArray[np.float64]],
    unit: int,
) -> list[str]:
    """The ways that lead to the best end."""
    on_tape = bool(best[True].max() >= best[False].max())
    place = int(best[on_tape].argmax())
    ways: list[str] = []
    choices = list(product(_ON_TAPE, _WAYS))
    for cost, chosen in zip(reversed(costs), reversed(steps), strict=True):
        before, way = choices[chosen[on_tape][place]]
        ways.append(way)
        size, _ = cost.of(way, before and not cost.first)
        place -= round(size / unit)
        on_tape = before
    return ways[::-1]
