"""Integer transforms: undone to the bit, and close to the orthonormal ones."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from revgrad.fixed_point.lifting import HAAR_GROWTH, haar, hadamard2, hadamard4

LIMIT = 2**31


def integers(shape, size, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-size, size + 1, shape, generator=generator, dtype=torch.int32)


def hadamard(spatial_dims):
    """The orthonormal matrix, the last axis as the fastest."""
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / math.sqrt(2)
    matrix = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(spatial_dims):
        matrix = torch.kron(matrix, two)
    return matrix


@given(
    spatial_dims=st.integers(1, 3),
    groups=st.integers(1, 3),
    bits=st.integers(0, 29),
    seed=st.integers(0, 10**6),
)
def test_haar_is_undone_to_the_bit_and_rounds_by_two_steps_at_most(
    spatial_dims, groups, bits, seed
):
    largest = int(min(2**bits, (LIMIT - 1) / HAAR_GROWTH[spatial_dims]))
    x = integers((2, groups * 2**spatial_dims, *[3] * spatial_dims), largest, seed)
    for inverse in (False, True):
        y = haar(x, spatial_dims, inverse=inverse)
        assert y.dtype == torch.int32
        assert torch.equal(haar(y, spatial_dims, inverse=not inverse), x)
        grouped = x.double().unflatten(1, (groups, -1))
        expected = torch.einsum("ij,ngj...->ngi...", hadamard(spatial_dims), grouped).flatten(1, 2)
        assert (y - expected).abs().max() <= (1 if spatial_dims < 3 else 2)


@pytest.mark.parametrize(("function", "size"), [(hadamard2, 2), (hadamard4, 4)])
def test_the_largest_numbers_that_fit(function, size):
    largest = int((LIMIT - 1) / math.sqrt(size))
    for signs in torch.cartesian_prod(*[torch.tensor([-1, 1])] * size):
        x = (signs * largest).to(torch.int32).view(1, 1, size)
        assert torch.equal(function(function(x)), x)
        matrix = hadamard(size.bit_length() - 1)
        assert (function(x).flatten() - matrix @ x.flatten().double()).abs().max() <= 1
