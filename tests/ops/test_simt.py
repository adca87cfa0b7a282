"""The simulator finds what it is there to find, and numbers are what torch takes them for."""

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def first_order(simt):
    simt.set_order(0)


def reversed_by(simt, order, barrier):
    numbers, out = np.arange(64, dtype=np.float32), np.zeros(64, dtype=np.float32)
    simt.set_order(order)
    simt.reverse(numbers, out, barrier)
    return out


def test_a_missing_barrier_shows(simt):
    want = np.arange(64, dtype=np.float32)[::-1]
    for order in range(simt.orders):
        assert np.array_equal(reversed_by(simt, order, True), want)
        assert not np.array_equal(reversed_by(simt, order, False), want)


def test_threads_that_miss_a_barrier_are_reported(simt):
    with pytest.raises(RuntimeError, match=r"module.cpp:\d+: a barrier that some threads never"):
        simt.deadlock(np.zeros(64, dtype=np.float32))


def test_lanes_that_miss_a_warp_collective_are_reported(simt):
    numbers, out = np.arange(32, dtype=np.float32), np.zeros(1, dtype=np.float32)
    simt.warp_sum(numbers, out, False)
    assert out[0] == numbers.sum()
    with pytest.raises(RuntimeError, match="warp collective waits for lanes that never come"):
        simt.warp_sum(numbers, out, True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_conversions_agree_with_torch_for_every_number(simt, dtype):
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    wide = every.float()
    # Each number, its neighbours in float32 and the midpoints between numbers, where ties are.
    bits = wide.view(torch.int32)
    step = {torch.float16: 2**12, torch.bfloat16: 2**15}[dtype]
    near = torch.cat([bits + d for d in (-step - 1, -step, -1, 0, 1, step, step + 1)])
    tiny = torch.rand(10000) * 1e-4
    values = torch.cat([near.view(torch.float32), tiny, torch.tensor([1e30, 65519.9, 65520.0])])
    narrow = np.zeros(values.numel(), dtype=np.int16)
    back = np.zeros(values.numel(), dtype=np.float32)
    simt.convert(str(dtype).removeprefix("torch."), values.numpy(), narrow, back)
    want = values.to(dtype)
    got = torch.from_numpy(narrow).view(dtype)
    number = ~values.isnan()
    assert torch.equal(got.view(torch.int16)[number], want.view(torch.int16)[number])
    assert got[~number].isnan().all()
    assert torch.equal(torch.from_numpy(back)[number], want.float()[number])
