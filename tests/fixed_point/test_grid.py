"""Rounding to the grid and back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from revgrad.fixed_point import Grid
from revgrad.fixed_point import grid as module

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@given(bits=st.integers(0, 30), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 1000))
def test_round_is_the_nearest_number(bits, dtype, seed):
    torch.manual_seed(seed)
    grid = Grid(bits, dtype)
    x = ((torch.rand(50) * 2 - 1) * min(grid.limit, 1000.0) * 0.9).to(dtype)
    n = grid.round(x)
    assert n.dtype == torch.int32
    assert (n.double() * grid.step - x.double()).abs().max() <= grid.step / 2
    assert grid.floats(n).dtype == dtype


def test_ties_go_to_even():
    assert Grid(0).round(torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])).tolist() == [0, 2, 2, 0, -2]


@given(n=st.integers(-(2**31), 2**31 - 1), bits=st.integers(0, 30))
def test_float64_holds_every_number(n, bits):
    grid = Grid(bits, torch.float64)
    integers = torch.tensor([n], dtype=torch.int32)
    assert torch.equal(grid.round(grid.floats(integers)), integers)


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "transposed", "expanded"])
def test_piece_by_piece_is_the_same_as_whole(layout, monkeypatch):
    torch.manual_seed(0)
    x = torch.randn(3, 5, 7, 11)
    if layout == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "transposed":
        x = x.permute(3, 1, 0, 2)
    elif layout == "expanded":
        x = x[:, :1].expand(3, 5, 7, 11)
    grid = Grid(20)
    whole = grid.round(x)
    start = torch.randint(-(2**20), 2**20, x.shape, dtype=torch.int32)
    for streams in (start, start.clone(memory_format=torch.channels_last)):
        expected = streams - whole
        monkeypatch.setattr(module, "_PIECE", 64)
        assert torch.equal(grid.round(x), whole)
        assert torch.equal(grid.subtract_(streams.clone(), x), expected)
        monkeypatch.undo()


def test_a_broadcast_value_is_subtracted_whole(monkeypatch):
    monkeypatch.setattr(module, "_PIECE", 64)
    value = torch.randn(1, 5, 7, 11)
    start = torch.randint(-100, 100, (3, 5, 7, 11), dtype=torch.int32)
    expected = start - Grid(20).round(value)
    assert torch.equal(Grid(20).subtract_(start, value), expected)


def test_bad_grids_are_refused():
    for bits in (-1, 31):
        with pytest.raises(ValueError, match="fraction_bits must be 0 to 30"):
            Grid(bits)
    for bits in (2.0, True, "20"):
        with pytest.raises(TypeError, match="fraction_bits must be an int"):
            Grid(bits)
    with pytest.raises(TypeError, match="real floats"):
        Grid(20, torch.complex64)
