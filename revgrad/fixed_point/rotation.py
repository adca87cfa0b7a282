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
        rows = list(matrices.detach().to(torch.float64).unbind(1))
        axes, cosines, sines = [], [], []
        for column in range(len(rows) - 1):
            for row in range(len(rows) - 1, column, -1):
                upper, lower = rows[row - 1], rows[row]
                cos, sin = _direction(upper[:, column], lower[:, column])
                rows[row - 1] = cos[:, None] * upper + sin[:, None] * lower
                rows[row] = cos[:, None] * lower - sin[:, None] * upper
                axes.append((row - 1, row))
                cosines.append(cos)
                sines.append(sin)
        signs = torch.where(torch.stack(rows, 1).diagonal(dim1=-2, dim2=-1) < 0, -1, 1)
        factors = _shears(cosines, sines) if axes else []
        shears = [(i, j, *f) for (i, j), f in zip(axes, factors, strict=True)]
        return Lifting(signs.to(torch.int32), shears)

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


def _direction(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angle of (a, b); of the angle 0 if there is none."""
    length = torch.hypot(a, b)
    none = length <= 1e-300
    safe = length.clamp_min(1e-300)
    return (a / safe).masked_fill(none, 1.0), (b / safe).masked_fill(none, 0.0)


def _shears(cosines: list[Tensor], sines: list[Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of each rotation the half turn and the coefficients of the outer and inner shears."""
    cos, sin = torch.stack(cosines), torch.stack(sines)
    turned = torch.where(cos < 0, -1, 1).to(torch.int32)
    cos, sin = cos * turned, sin * turned
    # tan(angle / 2) without loss for small angles; cos is not negative here.
    return list(zip(turned.unbind(), (-sin / (1 + cos)).unbind(), sin.unbind(), strict=True))


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    """One value for each channel of (N, C, ...)."""
    return values.view(1, -1, *(1,) * (like.dim() - 2))
