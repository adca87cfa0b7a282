"""Every executor of the block transform against a float64 oracle, and its derivatives."""

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from revgrad.nn.resampling import blocks_to_channels
from revgrad.ops import (
    kernels,
    orthogonal_down,
    orthogonal_down_reference,
    orthogonal_up,
    orthogonal_up_reference,
)
from revgrad.ops.orthogonal import _Weight, weight_reference

STRIDES = [(2,), (3,), (2, 2), (2, 1), (3, 2), (1, 4), (2, 2, 2), (1, 2, 2), (3, 1, 2), (4, 4, 4)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# A few units in the last place of the type, for sums of up to 64 terms.
TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 2e-5,
    torch.bfloat16: 2e-2,
    torch.float16: 2.5e-3,
}
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def image(stride, dtype=torch.float64, last=False, n=2, c=3, blocks=3, device="cpu"):
    size = [blocks * s for s in stride]
    size[-1] = 5 * stride[-1]
    x = torch.randn(n, c, *size).to(dtype).to(device)
    return x.contiguous(memory_format=FORMATS[x.dim()]) if last else x


def matrix(stride, shared, c=3, dtype=torch.float64, device="cpu"):
    k = math.prod(stride)
    q = torch.linalg.qr(torch.randn(1 if shared else c, k, k, dtype=torch.float64))[0]
    return (q[0] if shared else q).to(dtype).to(device)


def close(got, want, tolerance):
    scale = want.double().abs().max().clamp_min(1) if want.numel() else 1
    assert ((got.double() - want.double()).abs() <= tolerance * scale).all()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stride", STRIDES)
def test_down_up_and_weight_agree_with_the_oracle(backend, stride, dtype, last, shared):
    if last and len(stride) == 1:
        pytest.skip("one axis has no channels-last format")
    if backend.name == "simt" and math.prod(stride) == 64 and dtype != torch.float32:
        pytest.skip("slow there, and the same code as for the other blocks")
    x = image(stride, dtype, last, device=backend.device)
    q = matrix(stride, shared, device=backend.device)
    y = orthogonal_down(x, q, stride)
    exact = orthogonal_down_reference(x.double(), q.float().double(), stride)
    if dtype == torch.float64:
        exact = orthogonal_down_reference(x, q, stride)
    close(y, exact, TOLERANCE[dtype])
    assert y.dtype == dtype and y.stride() == exact.stride()

    back = orthogonal_up(y, q, stride)
    close(back, x, 3 * TOLERANCE[dtype])
    assert back.stride() == x.stride()

    if backend.name != "reference":
        weight = _Weight.apply(x, y, stride, shared)
        close(weight, weight_reference(x.double(), y.double(), stride, shared), 2e-5)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("stride", [(2,), (2, 2), (3, 1), (2, 1, 2)])
def test_first_and_second_derivatives(backend, stride, shared):
    if backend.name == "simt" and stride not in ((2, 2), (2, 1, 2)):
        pytest.skip("slow there; the other executors see every stride")
    x = image(stride, blocks=1, c=2, n=1, device=backend.device).requires_grad_()
    q = matrix(stride, shared, c=2, device=backend.device).requires_grad_()
    y = orthogonal_down(x, q, stride).detach().requires_grad_()
    for op, inputs in ((orthogonal_down, (x, q)), (orthogonal_up, (y, q))):
        assert torch.autograd.gradcheck(lambda a, b, op=op: op(a, b, stride), inputs)
        if backend.name != "simt":  # minutes there; it is the same three operators again
            assert torch.autograd.gradgradcheck(lambda a, b, op=op: op(a, b, stride), inputs)


def test_forward_mode(backend):
    stride = (2, 2)
    x, q = image(stride, device=backend.device), matrix(stride, False, device=backend.device)
    dx, dq = torch.randn_like(x), torch.randn_like(q)
    y, dy = torch.func.jvp(lambda a, b: orthogonal_down(a, b, stride), (x, q), (dx, dq))
    close(dy, orthogonal_down(dx, q, stride) + orthogonal_down(x, dq, stride), 1e-12)
    z = torch.randn_like(y)
    _, du = torch.func.jvp(lambda a, b: orthogonal_up(a, b, stride), (y, q), (z, dq))
    close(du, orthogonal_up(z, q, stride) + orthogonal_up(y, dq, stride), 1e-12)


@pytest.mark.parametrize("shared", [True, False])
def test_half_images_have_full_precision_matrix_gradients(backend, shared):
    x = image((2, 2), torch.bfloat16, n=4, blocks=16, device=backend.device)
    q = matrix((2, 2), shared, dtype=torch.float32, device=backend.device).requires_grad_()
    g = torch.randn_like(orthogonal_down(x, q, (2, 2)))
    (grad,) = torch.autograd.grad(orthogonal_down(x, q, (2, 2)), q, g)
    close(grad, weight_reference(x.double(), g.double(), (2, 2), shared), 1e-5)
    assert grad.dtype == torch.float32


def test_long_sums(backend):
    x = image((2, 2), torch.float32, n=3, c=2, blocks=171, device=backend.device)
    y = torch.randn(3, 8, 171, 5, device=backend.device)
    for shared in (True, False):
        q = matrix((2, 2), shared, 2, torch.float32, backend.device).requires_grad_()
        (grad,) = torch.autograd.grad(orthogonal_down(x, q, (2, 2)), q, y)
        close(grad, weight_reference(x.double(), y.double(), (2, 2), shared), 1e-5)


def test_the_identity_gives_the_order_of_pixel_shuffle(backend):
    x = image((2, 2, 2), torch.float32, device=backend.device)
    y = orthogonal_down(x, torch.eye(8, device=backend.device), 2)
    assert torch.equal(y, blocks_to_channels(x, 3))


PACKED = [(2,), (1, 2), (2, 1), (2, 2), (1, 4), (4, 1), (2, 2, 2), (2, 1, 4), (1, 1, 8), (8, 1, 1)]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stride", PACKED)
def test_long_lines_and_many_channels(stride, dtype, last, shared):
    """Whole vectors on the CPU, the last of which overlaps the one before it, or not."""
    if last and len(stride) == 1:
        pytest.skip("one axis has no channels-last format")
    for many in (37, 64):
        c, line = (many, 3) if last else (2, many)
        x = torch.randn(2, c, *(3 * s for s in stride[:-1]), line * stride[-1]).to(dtype)
        x = x.contiguous(memory_format=FORMATS[x.dim()]) if last else x
        q = matrix(stride, shared, c)
        y = orthogonal_down(x, q, stride)
        wide = q if dtype == torch.float64 else q.float().double()
        close(y, orthogonal_down_reference(x.double(), wide, stride), TOLERANCE[dtype])
        close(orthogonal_up(y, q, stride), x, 3 * TOLERANCE[dtype])


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_results_are_written_past_the_cache(dtype, last):
    x = torch.randn(1, 64, 256, 512 if dtype == torch.float32 else 1024).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    q = matrix((2, 2), False, 64, torch.float32)
    assert x.numel() * x.element_size() >= 16 * 2**20
    y = orthogonal_down(x, q, 2)
    close(y, orthogonal_down_reference(x, q, 2), TOLERANCE[dtype])
    close(orthogonal_up(y, q, 2), orthogonal_up_reference(y, q, 2), TOLERANCE[dtype])


def test_rounding_to_bfloat16_is_torch_s(backend):
    """Ties, infinities, and NaNs whose lower half a rounding could carry away."""
    steps = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 1 + 2**-8 + 2**-20, 3e38, -3.4e38])
    x = torch.ones(1, 2, 1, 64, dtype=torch.bfloat16, device=backend.device)
    for value in [*steps.tolist(), math.inf, -math.inf]:
        q = torch.tensor([[value, 0.0], [0.0, 1.0]], device=backend.device)
        y = orthogonal_down(x, q, (1, 2))
        assert torch.equal(y, orthogonal_down_reference(x, q, (1, 2)))
    for bits in (0x7FFFFFFF, -1):
        q = torch.full((2, 2), 1.0)
        q.view(torch.int32)[0, 0] = bits
        assert orthogonal_down(x, q.to(x.device), (1, 2))[:, ::2].isnan().all()
    x.view(torch.int16)[..., ::3] = 0x7FFF
    x.view(torch.int16)[..., 1::3] = -1
    y = orthogonal_down(x, torch.ones(2, 2, device=x.device), (1, 2))
    assert y.isnan().any() and torch.equal(
        y.isnan(), orthogonal_down_reference(x, torch.ones(2, 2, device=x.device), (1, 2)).isnan()
    )


VIEWS = {
    "chunk": lambda t: t.repeat(1, 2, *[1] * (t.dim() - 2)).chunk(2, 1)[1],
    "transposed": lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2),
    "every second": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "expanded": lambda t: t[:1].expand_as(t),
    "channels apart": lambda t: t.contiguous(memory_format=FORMATS[t.dim()])[:, :, 3:],
}


@pytest.mark.parametrize("view", VIEWS)
def test_views_give_the_same_as_dense_images(backend, view):
    x = VIEWS[view](image((3, 2), torch.float32, device=backend.device))
    q = matrix((3, 2), False, dtype=torch.float32, device=backend.device).requires_grad_()
    y = orthogonal_down(x, q.mT, (3, 2))
    close(y, orthogonal_down_reference(x.contiguous(), q.mT, (3, 2)), 1e-6)
    g = torch.randn_like(y)
    (grad,) = torch.autograd.grad(y, q, g)
    (want,) = torch.autograd.grad(orthogonal_down_reference(x, q.mT, (3, 2)), q, g)
    close(grad, want, 1e-5)
    g = VIEWS[view](torch.randn(2, 6 * 2, 6, 4, device=backend.device))
    close(orthogonal_up(g, q[:2], (3, 2)), orthogonal_up_reference(g, q[:2], (3, 2)), 1e-6)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (1, 1, 1, 1)])
def test_empty_and_one_element_images(backend, shape):
    stride = (1, 1) if shape[-1] == 1 else (2, 2)
    x = torch.randn(shape, device=backend.device, requires_grad=True)
    q = torch.eye(math.prod(stride), device=backend.device, requires_grad=True)
    y = orthogonal_down(x, q, stride)
    assert y.shape == orthogonal_down_reference(x, q, stride).shape
    back = orthogonal_up(y, q, stride)
    assert torch.equal(back, x)
    back.sum().backward()
    assert x.grad.shape == x.shape
    if not x.numel():
        assert torch.equal(q.grad, torch.zeros_like(q))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_shape_on_the_cpu(data):
    axes = data.draw(st.integers(1, 3))
    stride = tuple(data.draw(st.integers(1, 4)) for _ in range(axes))
    size = [s * data.draw(st.integers(1, 4)) for s in stride]
    size[-1] *= data.draw(st.sampled_from([1, 1, 17, 33]))
    n, c = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 2, 5, 67]))
    x = torch.randn(n, c, *size, dtype=torch.float64)
    if axes > 1 and data.draw(st.booleans()):
        x = x.contiguous(memory_format=FORMATS[x.dim()])
    q = matrix(stride, data.draw(st.booleans()), c)
    y = orthogonal_down(x, q, stride)
    want = orthogonal_down_reference(x, q, stride)
    close(y, want, 1e-12)
    for a, b, length in zip(y.stride(), want.stride(), y.shape, strict=True):
        assert a == b or length == 1  # the stride of an axis of length 1 says nothing
    close(orthogonal_up(y, q, stride), x, 1e-12)
    close(_Weight.apply(x, y, stride, False), weight_reference(x, y, stride, False), 1e-12)


@pytest.mark.parametrize("batched", ["x", "q", "both"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("op", [orthogonal_down, orthogonal_up])
def test_vmap(op, shared, batched):
    dims = (0 if batched != "q" else None, 0 if batched != "x" else None)
    x, q = torch.randn(4, 2, 4, 6, 4), torch.randn(4, 4, 4)
    if not shared:
        q = torch.randn(4, 4 if op is orthogonal_down else 1, 4, 4)
    x, q = (x if dims[0] == 0 else x[0]), (q if dims[1] == 0 else q[0])

    def loss(a, b):
        return op(a, b, (2, 2)).square().sum()

    got = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=dims)(x, q)
    for i in range(4):
        sample = (x if dims[0] is None else x[i], q if dims[1] is None else q[i])
        want = torch.func.grad(loss, argnums=(0, 1))(*sample)
        for a, b in zip(got, want, strict=True):
            close(a[i], b, 1e-4)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shared", [True, False])
def test_opcheck(shared, last):
    x, q = image((2, 3), torch.float32, last), matrix((2, 3), shared, dtype=torch.float32)
    y = orthogonal_down(x, q, (2, 3))
    raw = kernels.raw()
    torch.library.opcheck(raw.orthogonal_down, (x, q, [2, 3], last))
    torch.library.opcheck(raw.orthogonal_up, (y, q, [2, 3], last))
    torch.library.opcheck(raw.orthogonal_weight, (x, y, [2, 3], shared, last))


@pytest.mark.compiler
def test_compiles_in_one_graph():
    x, q = image((2, 2), torch.float32), matrix((2, 2), False, dtype=torch.float32)
    inputs = [x.requires_grad_(), q.requires_grad_()]

    def loss(a, b):
        return orthogonal_up(orthogonal_down(a, b, 2).sin(), b, 2).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, b in zip(
        torch.autograd.grad(compiled(*inputs), inputs),
        torch.autograd.grad(loss(*inputs), inputs),
        strict=True,
    ):
        close(a, b, 1e-5)


def test_meta_tensors_have_the_results_shape():
    x = torch.empty(2, 3, 8, 8, device="meta").to(memory_format=torch.channels_last)
    y = orthogonal_down(x, torch.empty(4, 4, device="meta"), 2)
    assert y.shape == (2, 12, 4, 4) and y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("last", [False, True])
def test_the_number_of_threads_does_not_change_a_bit(last):
    x, q = image((2, 2), torch.float32, last, n=8, c=16, blocks=64), torch.randn(16, 4, 4)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        y = orthogonal_down(x, q, 2)
        results.append((y, orthogonal_up(y, q, 2), _Weight.apply(x, y, (2, 2), False)))
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_what_no_kernel_takes_runs_on_the_reference():
    x, q = torch.randn(1, 1, 16, 16), torch.randn(256, 256)
    close(orthogonal_down(x, q, 16), orthogonal_down_reference(x, q, 16), 1e-6)


@pytest.mark.parametrize(
    ("op", "shape", "q", "stride", "words"),
    [
        (orthogonal_down, (2, 3, 5, 4), (4, 4), 2, "must divide by stride (2, 2)"),
        (orthogonal_up, (2, 6, 4, 4), (4, 4), 2, "must divide by 4"),
        (orthogonal_down, (2, 3, 4, 4), (2, 4, 4), 2, r"(4, 4) or (3, 4, 4), got (2, 4, 4)"),
        (orthogonal_up, (2, 8, 4, 4), (3, 3), 2, r"(4, 4) or (2, 4, 4), got (3, 3)"),
        (orthogonal_down, (2, 3), (4, 4), 2, "1 to 3 spatial axes"),
        (orthogonal_down, (2, 3, 4, 4), (4, 4), (2,), "each of the 2 spatial axes"),
        (orthogonal_down, (2, 3, 4, 4), (4, 4), (2, 0), "positive number"),
    ],
)
def test_bad_shapes_are_refused_with_what_is_accepted(op, shape, q, stride, words):
    with pytest.raises(ValueError) as error:
        op(torch.randn(shape), torch.randn(q), stride)
    assert words in str(error.value)


def test_bad_types_and_devices_are_refused():
    with pytest.raises(ValueError, match="floating"):
        orthogonal_down(torch.ones(1, 1, 2, 2, dtype=torch.int32), torch.eye(4), 2)
    with pytest.raises(ValueError, match="device"):
        orthogonal_down(torch.ones(1, 1, 2, 2), torch.eye(4, device="meta"), 2)


VARIANT = """
import torch
from revgrad.ops import *
torch.manual_seed(0)
for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)):
    for stride in ((2, 2), (2, 2, 1), (3, 2)):
        for last in (False, True):
            x = torch.randn(2, 35, *(35 * s for s in stride)).to(dtype)
            x = x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x
            q = torch.randn(35, *[torch.empty(stride).numel()] * 2) / 3
            a, b = orthogonal_down(x, q, stride), orthogonal_down_reference(x, q, stride)
            assert (a - b).abs().max() <= tolerance * b.abs().max()
            c, d = orthogonal_up(b, q, stride), orthogonal_up_reference(b, q, stride)
            assert (c - d).abs().max() <= tolerance * d.abs().max()
for n in (3, 8, 29, 64):
    theta = torch.randn(4, n, n, dtype=torch.float64, requires_grad=True)
    a, b = expm_skew(theta), expm_skew_reference(theta)
    assert (a - b).abs().max() < 1e-11
    g = torch.randn_like(a)
    (da,), (db,) = (torch.autograd.grad(e, theta, g) for e in (a, b))
    assert (da - db).abs().max() < 1e-9
"""


@pytest.mark.parametrize("variant", ["generic", "v3", "v4"])
def test_every_instruction_set_this_processor_has(variant):
    env = {**os.environ, "REVGRAD_CPU_VARIANT": variant}
    subprocess.run([sys.executable, "-c", VARIANT], env=env, check=True)
