"""`expm_skew` by matrix products of PyTorch, for matrices too large for the kernels.

The same algorithm as csrc/kernels/expm_skew.h, which explains it; one plan serves a whole batch.
The two operators here stand in for the kernels' raw ones and have their signatures.
"""

from __future__ import annotations

import torch
from torch import Tensor

from revgrad.ops.expm_ladder import LADDERS, Rung, plan_for

TAPE = 5  # matrices that the backward pass reuses: B, B², B³, S, first exponential


def forward(theta: Tensor, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return exp(theta - theta^T), what its derivative reuses, and the plan, for (batch, n, n)."""
    tape = theta.new_zeros((theta.shape[0] if save else 0, TAPE, *theta.shape[1:]))
    kept = iter(tape.unbind(1) if save else _places(theta))
    a = theta - theta.mT
    b = torch.bmm(a, a, out=next(kept))
    which, halvings = plan_for(_radius(b), theta.dtype)
    rung = LADDERS[theta.dtype][which]
    if halvings:
        a.mul_(0.5**halvings)
        b.mul_(0.25**halvings)
    b2 = torch.bmm(b, b, out=next(kept))
    b3 = next(kept)
    if len(rung.s) > 3:
        torch.bmm(b, b2, out=b3)
    s = _series(rung.s, b, b2, b3, next(kept))
    e = _series(rung.c, b, b2, b3, next(kept))
    e.baddbmm_(a, s)
    del a, b, b2, b3, s
    if halvings:
        e, spare = torch.bmm(e, e), torch.empty_like(e) if halvings > 1 else e
    for _ in range(halvings - 1):
        e, spare = torch.bmm(e, e, out=spare), e
    if save and not halvings:
        e = e.clone()
    plan = torch.tensor([[which, halvings]], dtype=torch.int32).expand(theta.shape[0], 2)
    return e, tape, plan.contiguous()


def _places(theta: Tensor) -> list[Tensor]:
    """Memory for what a tape would hold, in tensors that may go early."""
    return [torch.empty_like(theta, memory_format=torch.contiguous_format) for _ in range(TAPE)]


def backward(grad: Tensor, theta: Tensor, result: Tensor, tape: Tensor, plan: Tensor) -> Tensor:
    """Return the gradient of theta, given that of exp(theta - theta^T)."""
    if not theta.shape[0]:
        return torch.empty_like(theta)
    which, halvings = plan[0].tolist()
    rung = LADDERS[theta.dtype][which]
    b, b2, b3, s, first = tape.unbind(1)
    if halvings:
        grad = _unsquare(grad, result, first, halvings)
    a = (theta - theta.mT).mul_(0.5**halvings)
    odd = _half(grad, -1)
    da = _half(torch.bmm(odd, s), -1)
    ds = _half(torch.bmm(a, odd), 1).neg_()
    del odd, a  # room for the polynomials' gradients
    dc = _half(grad, 1)
    del grad
    db = _poly_gradient(rung, b, b2, b3, dc, ds)
    del dc, ds
    a = (theta - theta.mT).mul_(0.5**halvings)
    u = torch.bmm(a, db)
    del db, a
    da += u.mT
    da -= u
    return da.mul_(2 * 0.5**halvings)


def _radius(b: Tensor) -> float:
    """Bound the spectral radius of A from B = A²: two norms, and eigenvalues that come in pairs."""
    if not b.numel():
        return 0.0
    widest = torch.linalg.matrix_norm(b, 1)
    squares = torch.linalg.matrix_norm(b) * 0.5**0.5
    return float(torch.fmin(widest, squares).max()) ** 0.5


def _series(p: tuple[float, ...], b: Tensor, b2: Tensor, b3: Tensor, out: Tensor) -> Tensor:
    """Evaluate the polynomial `p` of B, with one product if it goes beyond B³."""
    _line(p[:4], b, b2, b3, out)
    if len(p) > 4:
        out.baddbmm_(b3, _line((0.0, *p[4:]), b, b2, b3))
    return out


def _line(
    p: tuple[float, ...], b: Tensor, b2: Tensor, b3: Tensor, out: Tensor | None = None
) -> Tensor:
    """Evaluate p[0] I + p[1] B + p[2] B² + p[3] B³."""
    result = torch.mul(b, p[1], out=out)
    result.add_(b2, alpha=p[2])
    if len(p) > 3:
        result.add_(b3, alpha=p[3])
    result.diagonal(dim1=-2, dim2=-1).add_(p[0])
    return result


def _half(m: Tensor, sign: int) -> Tensor:
    """(m + m^T) / 2, or with a minus."""
    return (m + m.mT if sign > 0 else m - m.mT).mul_(0.5)


def _unsquare(grad: Tensor, result: Tensor, first: Tensor, halvings: int) -> Tensor:
    """Take a gradient of X^(2^s) to one of X; X is orthogonal, and the steps commute."""
    w = _half(torch.bmm(result.mT, grad), -1)
    x = first
    t = torch.empty_like(w)
    for step in range(halvings):
        w.baddbmm_(torch.bmm(x, w, out=t), x.mT)
        if step + 1 < halvings:
            x, t = torch.bmm(x, x, out=t), torch.empty_like(t) if x is first else x
    return torch.bmm(first, w)


def _poly_gradient(rung: Rung, b: Tensor, b2: Tensor, b3: Tensor, dc: Tensor, ds: Tensor) -> Tensor:
    """From gradients of C and S, all symmetric, to that of B."""
    c, s = rung.c, rung.s
    db = (dc * c[1]).add_(ds, alpha=s[1])
    db2 = (dc * c[2]).add_(ds, alpha=s[2])
    if len(c) == 3:
        return db + _twice_symmetric(torch.bmm(b, db2))
    if len(c) == 4:
        db3 = (dc * c[3]).add_(ds, alpha=s[3])
    else:
        m = torch.bmm(dc, _line(c[3:], b, b2, b3))
        m.baddbmm_(ds, _line(s[3:], b, b2, b3))
        db3 = _half(m, 1)
        for d, p in ((dc, c), (ds, s)):
            torch.bmm(b3, d, out=m)
            r = _half(m, 1)
            db.add_(r, alpha=p[4])
            db2.add_(r, alpha=p[5])
            db3.add_(r, alpha=p[6])
        del m, r
    db += _half(torch.bmm(db3, b2), 1)
    db2 += _half(torch.bmm(b, db3), 1)
    del db3
    db += _twice_symmetric(torch.bmm(b, db2))
    return db


def _twice_symmetric(m: Tensor) -> Tensor:
    return m + m.mT
