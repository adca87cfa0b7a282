"""Polynomials for the exponential of an antisymmetric matrix, by bound on its spectral radius.

`exp(A) = C(A²) + A S(A²)` with `C(-x²) = cos x` and `S(-x²) = sin(x) / x`. A rung holds minimax
polynomials in t = x² of both on [0, limit²], with the value at 0 held exact; they are written for
B = -t, so all coefficients are positive. Values are off by less than half a rounding unit,
derivatives by less than four. csrc/kernels/expm_skew.h holds the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rung:
    """Coefficients of C and S, up to power 2, 3 or 6 of B, for radii up to `limit`."""

    limit: float
    c: tuple[float, ...]
    s: tuple[float, ...]


LADDERS = {
    torch.float32: (
        Rung(
            0.15,
            (1.0, 0.499999912144680474, 0.0416354276506409212),
            (1.0, 0.166666654114786082, 0.0083288702681081796),
        ),
        Rung(
            0.502,
            (1.0, 0.499999987648269065, 0.0416657842767503201, 0.00137954321491970991),
            (1.0, 0.166666665293203483, 0.00833323521787875117, 0.000197373695543845152),
        ),
        Rung(
            2.65,
            (
                1.0,
                0.499999999384742756,
                0.0416666603559696162,
                0.00138887838230303219,
                0.0000247951754936981397,
                2.73797392908198315e-7,
                1.85882538086214331e-9,
            ),
            (
                1.0,
                0.166666666625221321,
                0.00833333290824937754,
                0.000198411990878834419,
                2.7553003683820441e-6,
                2.49327073041740297e-8,
                1.45236005919209819e-10,
            ),
        ),
    ),
    torch.float64: (
        Rung(
            0.00252,
            (1.0, 0.499999999999992999, 0.0416666578466675418),
            (1.0, 0.166666666666665666, 0.00833333207333343057),
        ),
        Rung(
            0.0281,
            (1.0, 0.499999999999999618, 0.0416666666579686191, 0.00138885951380680191),
            (1.0, 0.166666666666666624, 0.00833333333236688137, 0.000198409434508831463),
        ),
        Rung(
            0.56,
            (
                1.0,
                0.499999999999999995,
                0.0416666666666654483,
                0.0013888888888435583,
                0.0000248015866847246656,
                2.75569397259774245e-7,
                2.07691042003785379e-9,
            ),
            (
                1.0,
                0.166666666666666666,
                0.00833333333333325207,
                0.000198412698409675019,
                2.75573188125692362e-6,
                2.50518552902447862e-8,
                1.59872546322611882e-10,
            ),
        ),
    ),
}


def plan_for(radius: float, dtype: torch.dtype) -> tuple[int, int]:
    """Choose the rung, and how often the matrix is halved first."""
    ladder = LADDERS[dtype]
    for index, rung in enumerate(ladder[:-1]):
        if radius <= rung.limit:
            return index, 0
    halvings = 0
    while radius > ladder[-1].limit and halvings < 60:
        radius *= 0.5
        halvings += 1
    return len(ladder) - 1, halvings
