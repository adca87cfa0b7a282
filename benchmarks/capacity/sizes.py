"""Sizes of memory as people write them, and the search for the largest thing that fits."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from revgrad.memory import sizes


def parse_bytes(text: str) -> int:
    """Read a size such as "12GB", for argparse.

    Raises:
        argparse.ArgumentTypeError: It is not a positive number and a unit.
    """
    try:
        return sizes.parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def largest(fits: Callable[[int], bool], guess: int = 1, limit: int = 2**20) -> int:
    """The largest size from 1 to `limit` that fits, or 0; what is smaller than one that fits does.

    Goes from the guess in strides that double, then bisects: a good guess costs two questions.
    """
    below, above = 0, limit + 1
    size, stride = min(max(guess, 1), limit), 1
    while above - below > 1:
        if fits(size):
            below, size = size, size + stride
        else:
            above, size = size, size - stride
        stride *= 2
        if not below < size < above:
            size = (below + above) // 2
    return below


def guess_from(peak: Callable[[int], int], volume: Callable[[int], int], budget: int) -> int:
    """The size at which a straight line through the peaks of sizes 1 and 2 meets the budget.

    Args:
        peak: Bytes of a step by size.
        volume: What the bytes grow with, by size.
        budget: In bytes.
    """
    first, second = peak(1), peak(2)
    slope = (second - first) / (volume(2) - volume(1))
    if slope <= 0:
        return 2
    room = volume(1) + (budget - first) / slope
    return largest(lambda size: volume(size) <= room)
