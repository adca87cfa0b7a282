"""Figures from elsewhere that stand beside the measured ones, and the goals.

The published ones are Table 1 of the iUNet's authors (Etmann, Ke and Schönlieb 2020, as their
slides print it), at full size. "iunets 80ed7cc" is the state of their package of 2021-06, measured
at 1/16 in contiguous layout with torch 2.13.0 on two cores of a CPU, 2026-11: its memory with one
convolution unit in each sub-network, its time with the package's own two.
"""

from collections.abc import Mapping

ByDepth = Mapping[int, float]

_DEPTHS = (5, 10, 20, 30)


def _by_depth(*values: float) -> ByDepth:
    return dict(zip(_DEPTHS, values, strict=True))


PUBLISHED_CONVENTIONAL_GB = _by_depth(3.17, 5.90, 11.36, 16.82)
PUBLISHED_EFFICIENT_GB = _by_depth(0.85, 1.09, 1.57, 2.06)
PUBLISHED_TIME_RATIO = _by_depth(1.67, 1.67, 1.86, 2.07)

IUNETS_CONVENTIONAL_MIB = _by_depth(205.6, 368.1, 693.2, 1018.3)
IUNETS_SHARE = _by_depth(0.269, 0.191, 0.145, 0.128)  # of the conventional, memory-efficient
IUNETS_TIME_RATIO = _by_depth(1.65, 1.68, 1.72, 1.64)

# At 1/16, channels-last: the peak without the convolutions' scratch, and time by that of plain.
GOAL_MIB = {
    "revgrad": _by_depth(43.8, 58.8, 88.9, 118.9),
    "revgrad-fused": _by_depth(41.8, 56.8, 86.9, 116.9),
    "revgrad-stepping": _by_depth(36.1, 43.6, 58.7, 73.7),
    "revgrad-fused-stepping": _by_depth(34.1, 41.6, 56.7, 71.7),
}
GOAL_TIME_RATIO = {"revgrad": 1.35, "revgrad-fused": 0.95}
