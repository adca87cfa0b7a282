"""Sizes of memory as people write them, and the search for the largest thing that fits."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

_UNITS = {
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
}


def parse_bytes(text: str) -> int:
    """Read a size such as "12GB" (10^9), "24GiB" (2^30) or "800 MB".

    Raises:
        argparse.ArgumentTypeError: It is not a positive number and a unit.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", text, re.IGNORECASE)
    if found is None or found[2].lower() not in _UNITS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no size of memory: give a number and a unit, such as 12GB, 24GiB or "
            "800MB (kB, MB, GB, TB are powers of 1000; KiB, MiB, GiB, TiB of 1024)"
        )
    size = int(float(found[1]) * _UNITS[found[2].lower()])
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no memory at all")
    return size


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
