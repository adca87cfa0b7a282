"""The fixed-point tensor: exact where it can be, floats everywhere else."""

import copy

import pytest
import torch

from revgrad import FixedPoint, ReversibleError
from revgrad.fixed_point import to_float


def fixed(*shape, bits=20, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return FixedPoint.from_float(torch.randn(*shape).to(dtype), bits)


EXACT = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "sub alpha": lambda x, y: torch.sub(x, y, alpha=-1),
    "neg": lambda x, y: -x,
    "cat": lambda x, y: torch.cat((x, y), 1),
    "stack": lambda x, y: torch.stack((x, y)),
    "chunk": lambda x, y: x.chunk(2, 1)[1],
    "split": lambda x, y: x.split([1, 3], 1)[1],
    "index": lambda x, y: x[:, 1:, None],
    "list": lambda x, y: x[:, [3, 0, 2]],
    "unbind": lambda x, y: x.unbind(1)[2],
    "permute": lambda x, y: x.permute(1, 0, 3, 2),
    "movedim": lambda x, y: x.movedim(1, -1),
    "reshape": lambda x, y: x.permute(1, 0, 2, 3).reshape(8, -1),
    "flip": lambda x, y: x.flip(1),
    "roll": lambda x, y: x.roll(1, 1),
    "expand": lambda x, y: x[:, :1].expand(2, 4, 4, 4),
    "shuffle": lambda x, y: torch.nn.functional.pixel_shuffle(x, 2),
    "unshuffle": lambda x, y: torch.nn.functional.pixel_unshuffle(x, 2),
    "channels last": lambda x, y: x.contiguous(memory_format=torch.channels_last),
    "clone": lambda x, y: x.clone(),
    "index_select": lambda x, y: x.index_select(1, torch.tensor([1, 1, 0])),
    "device": lambda x, y: x.to("cpu", copy=True),
}


@pytest.mark.parametrize("name", EXACT)
def test_sums_and_moves_are_exact(name):
    x, y = fixed(2, 4, 4, 4), fixed(2, 4, 4, 4, seed=1)
    result = EXACT[name](x, y)
    expected = EXACT[name](x.integers, y.integers)
    assert isinstance(result, FixedPoint)
    assert torch.equal(result.integers, expected)
    assert result.shape == expected.shape and result.stride() == expected.stride()


@pytest.mark.parametrize("name", EXACT)
def test_gradients_of_exact_operations_are_those_of_floats(name):
    results = []
    for make in (lambda t: FixedPoint.from_float(t), lambda t: t):
        x, y = (torch.randn(2, 4, 4, 4, generator=g).requires_grad_() for g in generators())
        value = to_float(EXACT[name](make(x), make(y)))
        (value * torch.linspace(0, 1, value.numel()).view_as(value)).sum().backward()
        results.append((x.grad, y.grad))
    for a, b in zip(*results, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def generators():
    return (torch.Generator().manual_seed(seed) for seed in (0, 1))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * 2,
        lambda x: x.abs().max(),
        lambda x: x + torch.ones(2, 4),
        lambda x: x + 1,
        lambda x: x.half(),
        lambda x: torch.sub(x, x, alpha=2),
        lambda x: torch.cat((x, torch.ones(2, 4))),
        lambda x: torch.zeros_like(x),
        lambda x: torch.nn.functional.linear(x, torch.ones(3, 4)),
        lambda x: torch.cat((x, torch.ones(2, 4, dtype=torch.int64))),
        lambda x: torch.stack((x, torch.ones(2, 4, dtype=torch.bool))),
        lambda x: x.view(torch.int32),
        lambda x: x.view(torch.int16),
        lambda x: torch.cat((x, x), out=torch.empty(4, 4)),
        lambda x: x.new_empty_strided((2, 2), (2, 1), dtype=torch.float64).zero_(),
    ],
)
def test_anything_else_sees_floats(function):
    x = fixed(2, 4)
    result, expected = function(x), function(x.to_float())
    assert type(result) is torch.Tensor and result.dtype == expected.dtype
    assert torch.equal(result, expected)


def test_what_cannot_be_is_refused():
    x, y = fixed(2, 4), fixed(2, 4, seed=1)
    for write in (
        lambda: x.mul_(2),
        lambda: x.add_(y),
        lambda: x.copy_(y),
        lambda: x.zero_(),
        lambda: x.__setitem__((slice(None), slice(2)), y[:, :2]),
        lambda: torch.add(y, y, out=x),
        lambda: torch._foreach_add_([x], [y]),
    ):
        with pytest.raises(ReversibleError, match="would write into a fixed-point stream"):
            write()
    for other in (lambda z: x + z, lambda z: torch.cat((x, z))):
        with pytest.raises(ReversibleError, match="same fraction_bits; here 12 and 20"):
            other(fixed(2, 4, bits=12))
    for bad in (float("nan"), float("inf"), 3000.0, -3000.0, 2048 - 1e-9):
        with pytest.raises(ReversibleError, match=r"must be finite and less than 2048"):
            FixedPoint.from_float(torch.tensor([0.0, bad], dtype=torch.float64))
    with pytest.raises(TypeError, match="real floats"):
        FixedPoint.from_float(torch.ones(2, dtype=torch.int64))


def test_looks_like_its_floats():
    x = fixed(2, 4, dtype=torch.bfloat16)
    assert x.dtype == torch.float32 and x.to_float().dtype == torch.bfloat16
    assert fixed(2, dtype=torch.float64).dtype == torch.float64
    assert "FixedPoint" in repr(x) and x.sum().item() == x.integers.sum().item() / 2**20
    twin = copy.deepcopy(x)
    assert isinstance(twin, FixedPoint) and torch.equal(twin.integers, x.integers)
    assert twin.integers.data_ptr() != x.integers.data_ptr()
    assert FixedPoint.from_float(torch.empty(0, 3)).to_float().shape == (0, 3)


def test_types_that_go_together():
    """As floats of these types do."""
    x, y = fixed(2, 4), fixed(2, 4, dtype=torch.float64)
    z, w = fixed(2, 4, dtype=torch.bfloat16), fixed(2, 4, dtype=torch.float16)
    for a, b, dtype in [(x, y, torch.float64), (z, w, torch.float32), (z, x, torch.float32)]:
        for sum_ in (a + b, b + a, torch.cat((a, b))):
            assert isinstance(sum_, FixedPoint) and sum_.to_float().dtype == dtype
    assert torch.equal(torch.add(x, x, alpha=1.0).integers, (x + x).integers)


def test_other_libraries_get_floats():
    x = fixed(2, 4)
    assert torch.equal(torch.from_dlpack(x), x.to_float())
    assert (x.numpy() == x.to_float().numpy()).all()
