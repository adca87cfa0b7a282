"""Orthogonal matrices applied to integers so that they can be taken back to the bit.

A matrix is factored into signs and rotations in planes, each rotation into three shears, and the
product that a shear adds is rounded (lifting, see `lifting`). The inverse takes the sums back in
reverse. Suits small matrices: one of size n takes 3 n (n - 1) / 2 shears.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from revgrad.fixed_point.lifting import scaled


def growth(n: int) -> float:
    """Nothing on the way through a matrix of size n is larger than this times the largest number.

    A vector of n numbers is sqrt(n) times as long as the largest at most, rotations keep its
    length, and the first of three shears adds tan(45 degrees / 2) of it.
    """
    return 1.5 * math.sqrt(n)


@dataclass(frozen=True)
class Lifting:
    """The factors of a batch of orthogonal matrices.

    Attributes:
        signs: 1 or -1, (count, n): what the matrices are after all rotations.
        shears: For each rotation the axes i and j, whether the half turn that was split off
            changes both signs, and the coefficients of the outer and inner shears, each (count,).
    """

    signs: Tensor
    shears: list[tuple[int, int, Tensor, Tensor, Tensor]]

    @staticmethod
    def of(matrices: Tensor) -> Lifting:
        """Factor orthogonal matrices, (count, n, n).

        Rotations by more than a right angle are split into a half turn and the rest: the
        coefficients of the shears would grow without limit.
        """
        rest = matrices.detach().to(torch.float64, copy=True)
        n = rest.shape[-1]
        shears = []
        for column in range(n - 1):
            for row in range(n - 1, column, -1):
                a, b = rest[:, row - 1, column], rest[:, row, column]
                length = torch.hypot(a, b)
                safe = length.clamp_min(1e-300)
                one = torch.ones_like(a)
                cos = torch.where(length > 1e-300, a / safe, one)
                sin = torch.where(length > 1e-300, b / safe, 0 * one)
                upper, lower = rest[:, row - 1].clone(), rest[:, row].clone()
                rest[:, row - 1] = cos[:, None] * upper + sin[:, None] * lower
                rest[:, row] = cos[:, None] * lower - sin[:, None] * upper
                turned = torch.where(cos < 0, -1, 1).to(torch.int32)
                cos, sin = cos * turned, sin * turned
                # tan(angle / 2) without loss for small angles; cos is not negative here.
                shears.append((row - 1, row, turned, -sin / (1 + cos), sin))
        signs = torch.where(rest.diagonal(dim1=-2, dim2=-1) < 0, -1, 1).to(torch.int32)
        return Lifting(signs, shears)

    def packed(self) -> Tensor:
        """The factors as the kernels take them: (count, 3 n (n - 1) / 2 + n), float64.

        Three numbers a rotation, outer and inner coefficient and the half turn (1 or -1), in the
        order of `shears`; then the signs. csrc/kernels/orthogonal_exact.h says the same.
        """
        numbers = [t for *_, turned, outer, inner in self.shears for t in (outer, inner, turned)]
        return torch.stack([t.double() for t in (*numbers, *self.signs.T)], 1)

    def apply(self, blocks: Tensor) -> Tensor:
        """Multiply integers (N, count, n, ...) by the matrices."""
        rows = [x * _per_channel(s, x) for x, s in zip(blocks.unbind(2), self.signs.T, strict=True)]
        for i, j, turned, outer, inner in reversed(self.shears):
            x, y = rows[i], rows[j]
            x = x + scaled(y, _per_channel(outer, y))
            y = y + scaled(x, _per_channel(inner, x))
            x = x + scaled(y, _per_channel(outer, y))
            turn = _per_channel(turned, x)
            rows[i], rows[j] = x * turn, y * turn
        return torch.stack(rows, 2)

    def undo(self, blocks: Tensor) -> Tensor:
        """Take `apply` back."""
        rows = list(blocks.unbind(2))
        for i, j, turned, outer, inner in self.shears:
            turn = _per_channel(turned, rows[i])
            x, y = rows[i] * turn, rows[j] * turn
            x = x - scaled(y, _per_channel(outer, y))
            y = y - scaled(x, _per_channel(inner, x))
            x = x - scaled(y, _per_channel(outer, y))
            rows[i], rows[j] = x, y
        signs = self.signs.T
        return torch.stack([x * _per_channel(s, x) for x, s in zip(rows, signs, strict=True)], 2)


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    """One value for each channel of (N, C, ...)."""
    return values.view(1, -1, *(1,) * (like.dim() - 2))
