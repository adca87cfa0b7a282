"""Learnable orthogonal matrices: four ways to make them of free parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from revgrad.autograd.inventory import known
from revgrad.dataless import has_data, without_autocast
from revgrad.ops import expm_skew


@known
class OrthogonalMatrices(nn.Module):
    """A batch of learnable orthogonal matrices Q = start · R with a rotation R.

    R begins as the identity, so that Q begins as `start`, whose determinant it keeps. The ways to
    make R of free parameters:

    - "exp": exp(A) of an antisymmetric A (iUNet, Etmann et al. 2020). Gives every rotation.
    - "cayley": (I + A)^-1 (I - A). All rotations that turn nothing by 180 degrees.
    - "householder": a product of n reflections (of n - 1 for odd n). Every rotation.
    - "givens": a product of rotations in planes, one for each pair of axes.

    Half-precision parameters are computed with in float32, and give matrices of float32.

    Args:
        start: Orthogonal matrices, (count, n, n).
        method: "exp", "cayley", "householder" or "givens".

    Raises:
        ValueError: If the method is none of these, or the start is not orthogonal.
    """

    start: Tensor

    def __init__(self, start: Tensor, method: str = "exp") -> None:
        super().__init__()
        if method not in METHODS:
            raise ValueError(f"method must be one of {tuple(METHODS)}, not {method!r}")
        _check_orthogonal(start)
        self.method = method
        self.register_buffer("start", start.clone())
        self.theta = nn.Parameter(METHODS[method].identity(*start.shape[:2]).to(start))

    def forward(self) -> Tensor:
        """The matrices, (count, n, n)."""
        wide = torch.promote_types(self.theta.dtype, torch.float32)
        n = self.start.shape[-1]
        # Autocast would multiply matrices in half precision, which leaves them not orthogonal.
        with without_autocast(self.theta.device):
            rotation = METHODS[self.method].rotation(self.theta.to(wide), n)
            return _orthonormal(self.start) @ rotation

    def extra_repr(self) -> str:
        count, n, _ = self.start.shape
        return f"{count} of {n} x {n}, method={self.method!r}"


def _check_orthogonal(start: Tensor) -> None:
    if start.dim() != 3 or start.shape[-1] != start.shape[-2]:
        raise ValueError(f"matrices must be (count, n, n), not {tuple(start.shape)}")
    identity = torch.eye(start.shape[-1], dtype=start.dtype, device=start.device)
    if not start.numel() or not has_data(start):
        return
    deviation = (start @ start.mT - identity).abs().max().item()
    if not deviation < 1e-4:
        raise ValueError(f"the matrices are not orthogonal: Q Q^T is off by {deviation:.1e}")


def _orthonormal(start: Tensor) -> Tensor:
    """The nearest orthogonal matrices, where these have come from a coarser type.

    By Newton-Schulz iteration, which doubles the number of right digits each time.
    """
    q = start.to(torch.promote_types(start.dtype, torch.float32))
    for _ in range({torch.float32: 0, torch.float64: 2}.get(start.dtype, 4)):
        q = 1.5 * q - 0.5 * q @ q.mT @ q
    return q


# --- ways to make rotations ---------------------------------------------------------------------


class _Exponential:
    """Parameters: the entries below the diagonal of A = L - L^T."""

    @staticmethod
    def identity(count: int, n: int) -> Tensor:
        return torch.zeros(count, n * (n - 1) // 2)

    @staticmethod
    def rotation(theta: Tensor, n: int) -> Tensor:
        return expm_skew(_lower(theta, n))


class _Cayley(_Exponential):
    @staticmethod
    def rotation(theta: Tensor, n: int) -> Tensor:
        lower = _lower(theta, n)
        a = lower - lower.mT
        identity = torch.eye(n, dtype=a.dtype, device=a.device)
        result: Tensor = torch.linalg.solve(identity + a, identity - a)
        return result


def _lower(theta: Tensor, n: int) -> Tensor:
    """Matrices (count, n, n) with the parameters below the diagonal, row by row."""
    rows, columns = torch.tril_indices(n, n, -1, device=theta.device)
    return theta.new_zeros(theta.shape[0], n, n).index_put(
        (torch.arange(theta.shape[0], device=theta.device)[:, None], rows, columns), theta
    )


class _Householder:
    """Parameters: vectors v of reflections I - 2 v v^T / |v|^2, in pairs that begin equal."""

    @staticmethod
    def identity(count: int, n: int) -> Tensor:
        return torch.randn(count, n // 2, 1, n).expand(-1, -1, 2, -1).flatten(1, 2).clone()

    @staticmethod
    def rotation(theta: Tensor, n: int) -> Tensor:
        unit = theta / theta.norm(dim=-1, keepdim=True)
        q = torch.eye(n, dtype=theta.dtype, device=theta.device).expand(theta.shape[0], n, n)
        for v in unit.unbind(1):
            q = q - 2 * (q @ v[:, :, None]) * v[:, None, :]
        return q


class _Givens:
    """Parameters: angles. All pairs of axes in turn, disjoint pairs at once."""

    @staticmethod
    def identity(count: int, n: int) -> Tensor:
        return torch.zeros(count, n * (n - 1) // 2)

    @staticmethod
    def rotation(theta: Tensor, n: int) -> Tensor:
        q = torch.eye(n, dtype=theta.dtype, device=theta.device).expand(theta.shape[0], n, n)
        taken = 0
        for first, second in rounds(n):
            angles = theta[:, taken : taken + len(first), None]
            taken += len(first)
            q = _rotated(q, first, second, angles.cos(), angles.sin())
        return q


def _rotated(q: Tensor, first: list[int], second: list[int], cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate rows `first` and `second` of the matrices, pair by pair."""
    order = [*first, *second, *sorted(set(range(q.shape[-1])) - {*first, *second})]
    a, b = q[:, first], q[:, second]
    parts = (cos * a - sin * b, sin * a + cos * b, q[:, order[2 * len(first) :]])
    back = sorted(range(len(order)), key=order.__getitem__)
    return torch.cat(parts, 1)[:, back]


def rounds(n: int) -> Iterator[tuple[list[int], list[int]]]:
    """All pairs of n axes in rounds of disjoint ones, as in a tournament."""
    players = list(range(n + n % 2))
    for _ in range(len(players) - 1):
        half = len(players) // 2
        pairs = list(zip(players[:half], reversed(players[half:]), strict=True))
        pairs = [(min(p), max(p)) for p in pairs if max(p) < n]
        yield [i for i, _ in pairs], [j for _, j in pairs]
        players = [players[0], players[-1], *players[1:-1]]


METHODS: dict[str, type[_Exponential] | type[_Householder] | type[_Givens]] = {
    "exp": _Exponential,
    "cayley": _Cayley,
    "householder": _Householder,
    "givens": _Givens,
}


# --- where to start -----------------------------------------------------------------------------


def block_transform(init: str | Tensor, stride: tuple[int, ...], count: int) -> Tensor:
    """Matrices for blocks of pixels, (count, K, K) with K the product of `stride`.

    Args:
        init: "haar" (averages and differences: along each axis the orthonormal cosine transform,
            which for a stride of 2 is Haar's), "pixel_shuffle" (the identity), "random"
            (uniformly distributed), or a matrix (K, K) or (count, K, K).
        stride: Pixels of a block along each axis, the last one as the fastest.
        count: How many.
    """
    size = math.prod(stride)
    if isinstance(init, Tensor):
        if init.shape not in ((size, size), (count, size, size)):
            raise ValueError(
                f"init must be ({size}, {size}) or ({count}, {size}, {size}), not "
                f"{tuple(init.shape)}"
            )
        return init.detach().expand(count, size, size).clone()
    if init not in STARTS:
        raise ValueError(f"init must be a tensor or one of {tuple(STARTS)}, not {init!r}")
    return STARTS[init](stride, count)


def _haar(stride: tuple[int, ...], count: int) -> Tensor:
    matrix = torch.ones(1, 1, dtype=torch.float64)
    for n in stride:
        k, j = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
        cosines = torch.cos(math.pi / n * (j + 0.5) * k) * math.sqrt(2 / n)
        cosines[0] = math.sqrt(1 / n)
        matrix = torch.kron(matrix, cosines)
    return matrix.float().expand(count, *matrix.shape)


def _identity(stride: tuple[int, ...], count: int) -> Tensor:
    return torch.eye(math.prod(stride)).expand(count, -1, -1)


def random_rotation(stride: tuple[int, ...], count: int) -> Tensor:
    """Uniformly distributed: QR of a normal matrix with the signs of R's diagonal taken out."""
    n = math.prod(stride)
    q, r = torch.linalg.qr(torch.randn(count, n, n, dtype=torch.float64))
    return (q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]).float()


STARTS: dict[str, Callable[[tuple[int, ...], int], Tensor]] = {
    "haar": _haar,
    "pixel_shuffle": _identity,
    "random": random_rotation,
}
