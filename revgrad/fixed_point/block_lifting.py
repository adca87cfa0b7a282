"""Large orthogonal matrices applied to integers so that they can be taken back to the bit.

A shear adds to one half of the numbers a rounded matrix product of the other half, which is undone
by subtracting it again (lifting, see `lifting`). An orthogonal matrix of size n becomes five shears
by matrices of size n / 2 and spectral norm 2 at most, and an orthogonal matrix of size n / 2 that
is left, and so on: 5 log2(n) products with twice the arithmetic of one full product.

With the blocks Q = [[A, B], [C, D]], the singular value decomposition A = U cos V^T and the polar
factor G = U V^T (the cosine-sine decomposition, Paige and Saunders 1981), Q is

    [[1, -T], [0, 1]] [[1, 0], [M, 1]] [[1, -T], [0, 1]]  diag(G, H)

with M = C G^T and T = U (1 + cos)^-1 V^T C^T, which is a rotation by three shears as in the plane:
T is the tangent of the half angle. Nothing is divided by a small number. And of diag(G, H),

    diag(G, G^T) = [[1, G], [0, 1]] [[1, 0], [-G^T, 1]] [[1, G], [0, 1]] [[0, -1], [1, 0]]

(Whitehead's lemma) leaves diag(1, G H). Two neighbouring shears are one. Smaller matrices are
better served by plane rotations, see `rotation`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from revgrad.dataless import has_data


@dataclass(frozen=True)
class _Level:
    """The factors that act on the numbers from `start` on, the first `size` against the rest.

    Attributes:
        start: The first number.
        size: How many belong to the first part.
        shears: The matrices in the order in which they act, to the first, second, first, second
            and first part.
    """

    start: int
    size: int
    shears: tuple[Tensor, ...]


@dataclass(frozen=True)
class BlockLifting:
    """The factors of an orthogonal matrix.

    Attributes:
        sign: 1 or -1, of the last number.
        levels: The shears, those of the whole matrix first; they act last.
    """

    sign: int
    levels: tuple[_Level, ...]

    @staticmethod
    def of(matrix: Tensor, dtype: torch.dtype = torch.float32) -> BlockLifting:
        """Factor an orthogonal matrix (n, n).

        Args:
            matrix: The matrix. The factors are computed on the CPU, in float64.
            dtype: The type in which products are computed.
        """
        device = torch.device("cpu") if has_data(matrix) else matrix.device
        rest = matrix.detach().to(device, torch.float64)
        levels = []
        while (n := rest.shape[0]) > 1:
            p = n // 2
            shears, rest = _split(rest, p)
            made = tuple(s.to(matrix.device, dtype) for s in shears)
            levels.append(_Level(matrix.shape[0] - n, p, made))
        sign = -1 if has_data(rest) and rest.item() < 0 else 1
        return BlockLifting(sign, tuple(levels))

    def apply_(self, x: Tensor) -> Tensor:
        """Multiply integers (n, ...), in place."""
        x[-1:].mul_(self.sign)
        for level in reversed(self.levels):
            first, second = _parts(x, level)
            _turn_(first, second[: level.size])
            for i, shear in enumerate(level.shears):
                source, target = (first, second) if i % 2 else (second, first)
                target.add_(_product(shear, source))
        return x

    def undo_(self, x: Tensor) -> Tensor:
        """Take `apply_` back, in place."""
        for level in self.levels:
            first, second = _parts(x, level)
            for i, shear in reversed(list(enumerate(level.shears))):
                source, target = (first, second) if i % 2 else (second, first)
                target.sub_(_product(shear, source))
            _turn_(second[: level.size], first)
        x[-1:].mul_(self.sign)
        return x


def _split(q: Tensor, p: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """The five shears of an orthogonal matrix, and the matrix that is left for the second part."""
    u, cos, vt = torch.linalg.svd(q[:p, :p])
    polar = u @ vt
    sine = q[p:, :p] @ polar.T
    tangent = (u / (1 + cos)) @ vt @ q[p:, :p].T
    # Q without the rotation is diag(G, H); only H is needed.
    upper, lower = q[:p, p:], q[p:, p:]
    upper = upper + tangent @ lower
    rest = lower - sine @ upper
    wide = q.new_zeros(p, q.shape[0] - p)
    wide[:, :p] = polar
    left = rest.clone()
    left[:p] = polar @ rest[:p]
    return (wide, -wide.T, wide - tangent, sine, -tangent), left


def _parts(x: Tensor, level: _Level) -> tuple[Tensor, Tensor]:
    second = level.start + level.size
    return x[level.start : second], x[second:]


def _turn_(a: Tensor, b: Tensor) -> None:
    """(a, b) becomes (-b, a)."""
    before = a.clone()
    torch.neg(b, out=a)
    b.copy_(before)


def _product(matrix: Tensor, x: Tensor) -> Tensor:
    """The rounded product with integers (n, ...); the same bits for the same input."""
    return (matrix @ x.to(matrix.dtype)).round_().to(torch.int32)
