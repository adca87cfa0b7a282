"""Large orthogonal matrices on integers: taken back to the bit, and close to the product."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from revgrad.fixed_point.block_lifting import BlockLifting
from revgrad.fixed_point.rotation import growth

DOUBLE = torch.float64


def rotation(n, size):
    """exp of a random skew matrix; a small one is near the identity."""
    theta = size * torch.randn(n, n, dtype=DOUBLE)
    return torch.linalg.matrix_exp(theta - theta.T)


KINDS = {
    "far": lambda n: rotation(n, 1.0),
    "near": lambda n: rotation(n, 1e-3),
    "identity": lambda n: torch.eye(n, dtype=DOUBLE),
    "minus": lambda n: -torch.eye(n, dtype=DOUBLE),
    "permutation": lambda n: torch.eye(n, dtype=DOUBLE)[torch.randperm(n)],
    "exchanged halves": lambda n: torch.eye(n, dtype=DOUBLE).roll(n // 2, 0),
    "half turns": lambda n: torch.diag(torch.tensor([(-1.0) ** i for i in range(n)]).double()),
}


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(1, 40),
    kind=st.sampled_from(sorted(KINDS)),
    dtype=st.sampled_from([torch.float32, DOUBLE]),
    reflected=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_undone_to_the_bit_and_close_to_the_product(n, kind, dtype, reflected, seed):
    torch.manual_seed(seed)
    q = KINDS[kind](n)
    if reflected:
        q[0] *= -1
    lifting = BlockLifting.of(q, dtype)
    bits = 24 if dtype == DOUBLE else 18  # float32 holds products of numbers of 18 bits
    x = torch.randint(-(2**bits), 2**bits, (n, 50), dtype=torch.int32)
    y = lifting.apply_(x.clone())
    assert torch.equal(lifting.undo_(y.clone()), x)
    assert torch.equal(lifting.apply_(lifting.undo_(x.clone())), x)
    # Of five roundings by half a step a level, and what the later ones make of the earlier.
    assert (y - q @ x.double()).abs().max() <= 1 + 2.5 * n.bit_length()


def test_as_close_as_documented():
    torch.manual_seed(0)
    q = rotation(256, 1.0)
    x = torch.randint(-(2**24), 2**24, (256, 500), dtype=torch.int32)
    off = BlockLifting.of(q, DOUBLE).apply_(x.clone()) - q @ x.double()
    assert off.abs().max() < 5 and off.square().mean().sqrt() < 0.75


@pytest.mark.parametrize("n", [2, 7, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_on_the_way_is_larger_than_said(n, kind, monkeypatch):
    torch.manual_seed(0)
    q = KINDS[kind](n)
    # The longest vectors with entries up to one size, turned to where they add up most.
    x = (2**20 * torch.sign(torch.randn(n, 400, dtype=DOUBLE))).to(torch.int32)
    x[:, :n] = (2**20 * torch.sign(q.T)).to(torch.int32)
    seen = [x]
    added = torch.Tensor.add_
    monkeypatch.setattr(
        torch.Tensor, "add_", lambda self, *a: seen.append(added(self, *a).clone()) or self
    )
    BlockLifting.of(q).apply_(x.clone())
    assert len(seen) > 5
    assert max(int(s.abs().max()) for s in seen) <= growth(n) * 2**20


def test_factors_are_bounded():
    """Whatever the matrix: that is what keeps the roundings from growing."""
    torch.manual_seed(0)
    for kind in KINDS.values():
        for level in BlockLifting.of(kind(33), DOUBLE).levels:
            assert all(torch.linalg.matrix_norm(s, 2) < 2 + 1e-9 for s in level.shears)


def test_matrix_and_integers_are_left_alone():
    q = rotation(5, 1.0)
    before = q.clone()
    BlockLifting.of(q)
    assert torch.equal(q, before)
    x = torch.zeros(5, 0, dtype=torch.int32)
    assert BlockLifting.of(q).apply_(x) is x
