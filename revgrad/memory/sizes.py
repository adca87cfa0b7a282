"""Sizes of memory as people write them."""

from __future__ import annotations

import re

_UNITS = {
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
}


def parse_bytes(text: str) -> int:
    """Read a size such as "12GB" (10^9), "24GiB" (2^30) or "800 MB".

    Raises:
        ValueError: It is not a positive number and a unit.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", text, re.IGNORECASE)
    if found is None or found[2].lower() not in _UNITS:
        raise ValueError(
            f"{text!r} is no size of memory: give a number and a unit, such as 12GB, 24GiB or "
            "800MB (kB, MB, GB, TB are powers of 1000; KiB, MiB, GiB, TiB of 1024)"
        )
    size = int(float(found[1]) * _UNITS[found[2].lower()])
    if size < 1:
        raise ValueError(f"{text!r} is no memory at all")
    return size
