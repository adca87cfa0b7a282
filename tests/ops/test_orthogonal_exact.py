"""Orthogonal resampling of integers: every executor to the bit as the reference, and undone."""

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from revgrad.fixed_point.rotation import Lifting
from revgrad.ops import kernels, orthogonal_down, orthogonal_down_exact, orthogonal_up_exact
from revgrad.ops.orthogonal import is_channels_last, merge_blocks, to_blocks

STRIDES = [(1,), (2,), (3,), (2, 2), (2, 1), (1, 4), (3, 2), (2, 2, 2), (3, 1, 2), (4, 4, 4)]
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
INT32 = torch.iinfo(torch.int32)


def matrices(c, k, dtype=torch.float64):
    return torch.linalg.qr(torch.randn(c, k, k, dtype=torch.float64))[0].to(dtype)


def integers(size, largest=2**24, last=False, device="cpu"):
    x = torch.randint(-largest, largest, size, dtype=torch.int32, device=device)
    return x.contiguous(memory_format=FORMATS[x.dim()]) if last else x


def size_of(stride, n=2, c=3, blocks=3, line=5):
    return [n, c, *(blocks * s for s in stride[:-1]), line * stride[-1]]


def down_in_plain_torch(x, q, stride):
    return Lifting.of(q).apply(to_blocks(x, stride)).flatten(1, 2)


def up_in_plain_torch(y, q, stride):
    return merge_blocks(Lifting.of(q).undo(y.unflatten(1, q.shape[:2])), stride)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("stride", STRIDES)
def test_the_bits_of_the_reference_in_both_directions(backend, stride, last):
    if last and len(stride) == 1:
        pytest.skip("one axis has no channels-last format")
    if backend.name == "simt" and math.prod(stride) == 64:
        pytest.skip("slow there, and the same code as for the other blocks")
    x = integers(size_of(stride), last=last, device=backend.device)
    q = matrices(3, math.prod(stride)).to(backend.device)
    y = orthogonal_down_exact(x, q, stride)
    assert torch.equal(y, down_in_plain_torch(x, q, stride))
    assert y.dtype == torch.int32 and is_channels_last(y) == is_channels_last(x)
    back = orthogonal_up_exact(y, q, stride)
    assert torch.equal(back, x) and back.stride() == x.stride()
    other = orthogonal_up_exact(x.reshape(y.shape), q, stride)
    assert torch.equal(other, up_in_plain_torch(x.reshape(y.shape), q, stride))


def test_it_is_the_rotation_but_for_rounding(backend):
    x, q = integers((2, 3, 8, 6), device=backend.device), matrices(3, 4).to(backend.device)
    off = orthogonal_down_exact(x, q, 2) - orthogonal_down(x.double(), q, 2)
    assert 0 < off.abs().max() <= 3


@pytest.mark.parametrize("stride", [(2, 2), (3, 2)])
def test_sums_beyond_the_range_wrap_around_and_come_back(backend, stride):
    """Tiles in range and out of it, and numbers at its very ends."""
    q = matrices(3, math.prod(stride)).to(backend.device)
    for last in (False, True):
        x = integers(size_of(stride, line=150), last=last, device=backend.device)
        x[..., 100:] *= 119
        x[0, 0, 0, :6] = torch.tensor([INT32.min, INT32.max, INT32.min, -1, INT32.max, 0])
        y = orthogonal_down_exact(x, q, stride)
        assert torch.equal(y, down_in_plain_torch(x, q, stride))
        assert torch.equal(orthogonal_up_exact(y, q, stride), x)
    assert (orthogonal_down(x.double(), q, stride).abs() > 2**31).any()


def test_right_angles_and_half_turns(backend):
    """Coefficients of exactly 1, products of exactly 2^31, and halves, which go to even."""
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    q = torch.stack([turn, turn.T, -torch.eye(2, dtype=torch.float64)]).to(backend.device)
    x = integers((1, 3, 40), INT32.max, device=backend.device)
    x[..., ::3] = INT32.min
    half = torch.tensor([[math.cos(math.pi / 3), -math.sin(math.pi / 3)],
                         [math.sin(math.pi / 3), math.cos(math.pi / 3)]]).double()  # fmt: skip
    for matrix in (q, half.expand(3, 2, 2).contiguous().to(backend.device)):
        y = orthogonal_down_exact(x, matrix, 2)
        assert torch.equal(y, down_in_plain_torch(x, matrix, (2,)))
        assert torch.equal(orthogonal_up_exact(y, matrix, 2), x)


def test_matrices_that_are_not_finite_are_undone_too(backend):
    q = matrices(2, 4).to(backend.device)
    q[1, 2, 3] = torch.nan
    x = integers((1, 2, 4, 6), device=backend.device)
    assert torch.equal(orthogonal_up_exact(orthogonal_down_exact(x, q, 2), q, 2), x)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_shape_on_the_cpu(data):
    axes = data.draw(st.integers(1, 3))
    stride = tuple(data.draw(st.integers(1, 4)) for _ in range(axes))
    size = [s * data.draw(st.integers(1, 3)) for s in stride]
    size[-1] *= data.draw(st.sampled_from([1, 1, 17, 33, 65]))
    n, c = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 2, 5, 67]))
    largest = data.draw(st.sampled_from([1, 2**10, 2**28, 2**30]))
    x = integers((n, c, *size), largest, axes > 1 and data.draw(st.booleans()))
    q = matrices(c, math.prod(stride))
    y = orthogonal_down_exact(x, q, stride)
    assert torch.equal(y, down_in_plain_torch(x, q, stride))
    assert torch.equal(orthogonal_up_exact(y, q, stride), x)


VIEWS = {
    "chunk": lambda t: t.repeat(1, 2, *[1] * (t.dim() - 2)).chunk(2, 1)[1],
    "every second": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "expanded": lambda t: t[:1].expand_as(t),
    "channels apart": lambda t: t.contiguous(memory_format=FORMATS[t.dim()])[:, :, 3:],
}


@pytest.mark.parametrize("view", VIEWS)
def test_views_give_the_same_as_dense_images(backend, view):
    x, q = VIEWS[view](integers((2, 3, 9, 10), device=backend.device)), matrices(3, 6)
    q = q.to(backend.device).mT
    y = orthogonal_down_exact(x, q, (3, 2))
    assert torch.equal(y, down_in_plain_torch(x.contiguous(), q, (3, 2)))
    assert torch.equal(orthogonal_up_exact(VIEWS["chunk"](y), q, (3, 2)), x)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)])
def test_empty_images(backend, shape):
    x = torch.zeros(shape, dtype=torch.int32, device=backend.device)
    q = matrices(shape[1], 4).to(backend.device)
    y = orthogonal_down_exact(x, q, 2)
    assert y.shape == (shape[0], 4 * shape[1], shape[2] // 2, 2) and y.dtype == torch.int32
    assert orthogonal_up_exact(y, q, 2).shape == shape


@pytest.mark.parametrize("last", [False, True])
def test_opcheck(last):
    x, factors = integers((2, 3, 4, 9), last=last), Lifting.of(matrices(3, 6)).packed()
    raw = kernels.raw()
    torch.library.opcheck(raw.orthogonal_down_exact, (x, factors, [2, 3], last))
    y = raw.orthogonal_down_exact(x, factors, [2, 3], last)
    torch.library.opcheck(raw.orthogonal_up_exact, (y, factors, [2, 3], last))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.ones(2, 3, 4, 9)}, "int32"),
        ({"factors": torch.ones(3, 51)}, "wrong type"),
        ({"factors": torch.ones(2, 51, dtype=torch.float64)}, "wrong shape"),
        ({"factors": torch.ones(3, 50, dtype=torch.float64)}, "wrong shape"),
    ],
)
def test_the_raw_operator_refuses_what_would_run_over(change, words):
    given = {"x": integers((2, 3, 4, 9)), "factors": torch.ones(3, 51, dtype=torch.float64)}
    given.update(change)
    with pytest.raises(RuntimeError, match=words):
        kernels.raw().orthogonal_down_exact(given["x"], given["factors"], [2, 3], False)


def test_meta_tensors_have_the_results_shape():
    x = torch.empty(2, 3, 8, 8, device="meta", dtype=torch.int32)
    x = x.to(memory_format=torch.channels_last)
    y = orthogonal_down_exact(x, torch.empty(3, 4, 4, device="meta"), 2)
    assert y.shape == (2, 12, 4, 4) and y.is_contiguous(memory_format=torch.channels_last)
    assert orthogonal_up_exact(y, torch.empty(3, 4, 4, device="meta"), 2).shape == x.shape


@pytest.mark.parametrize("last", [False, True])
def test_the_number_of_threads_does_not_change_a_bit(last):
    x, q = integers((8, 16, 64, 20), last=last), matrices(16, 4)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(orthogonal_down_exact(x, q, 2))
    torch.set_num_threads(1)
    assert torch.equal(*results)


def test_what_no_kernel_takes_runs_on_the_reference(monkeypatch):
    """Large blocks, tensor subclasses, kernels switched off: the raw operator is not called."""
    monkeypatch.setattr(kernels, "raw", lambda: pytest.fail("a kernel ran"))

    class Marked(torch.Tensor):
        pass

    x, q = integers((1, 1, 18, 18)), matrices(1, 81)
    assert torch.equal(orthogonal_up_exact(orthogonal_down_exact(x, q, 9), q, 9), x)
    x, q = integers((1, 1, 4, 4)), matrices(1, 4)
    assert torch.equal(orthogonal_down_exact(x.as_subclass(Marked), q, 2),
                       down_in_plain_torch(x, q, (2, 2)))  # fmt: skip
    monkeypatch.setattr(kernels, "_state", kernels.State("switched off", wanted=False))
    assert torch.equal(orthogonal_down_exact(x, q, 2), down_in_plain_torch(x, q, (2, 2)))


@pytest.mark.parametrize(
    ("x", "q", "words"),
    [
        (torch.ones(1, 3, 4, 4), torch.ones(3, 4, 4), "x must be int32 and q floating"),
        (integers((1, 3, 4, 4)), torch.ones(3, 4, 4).int(), "x must be int32 and q floating"),
        (integers((1, 3, 4, 4)), torch.ones(4, 4), r"q must be (C, K, K)"),
        (integers((1, 3, 5, 4)), torch.ones(3, 4, 4), "must divide by stride (2, 2)"),
        (integers((1, 3, 4, 4)), torch.ones(2, 4, 4), r"(3, 4, 4), got (2, 4, 4)"),
    ],
)
def test_bad_inputs_are_refused_with_what_is_accepted(x, q, words):
    with pytest.raises(ValueError) as error:
        orthogonal_down_exact(x, q, 2)
    assert words in str(error.value)


VARIANT = """
import torch
from revgrad.fixed_point.rotation import Lifting
from revgrad.ops import *
from revgrad.ops.orthogonal import to_blocks
torch.manual_seed(0)
for stride in ((2, 2), (2, 2, 2), (3, 2)):
    for largest in (2**24, 2**31 - 1):
        for turned in (False, True):
            size = (2, 19, *(35 * s for s in stride))
            x = torch.randint(-largest, largest, size, dtype=torch.int32)
            if turned:
                x = x.movedim(1, -1).contiguous().movedim(-1, 1)
            q = torch.linalg.qr(torch.randn(19, *[torch.empty(stride).numel()] * 2))[0]
            y = orthogonal_down_exact(x, q, stride)
            assert torch.equal(y, Lifting.of(q).apply(to_blocks(x, stride)).flatten(1, 2))
            assert torch.equal(orthogonal_up_exact(y, q, stride), x)
"""


@pytest.mark.parametrize("variant", ["generic", "v3", "v4"])
def test_every_instruction_set_this_processor_has(variant):
    env = {**os.environ, "REVGRAD_CPU_VARIANT": variant}
    subprocess.run([sys.executable, "-c", VARIANT], env=env, check=True)
