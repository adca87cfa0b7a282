"""Every executor of the matrix exponential against float64, small and large norms alike."""

import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from revgrad.ops import expm_products, expm_skew, expm_skew_reference, kernels
from revgrad.ops.expm_ladder import LADDERS, plan_for
from revgrad.ops.expm_skew import (
    _backward_by_products,
    _ExpmSkewBackward,
    _forward_by_products,
    backward_reference,
)

HEADER = Path(__file__).parents[2] / "csrc/kernels/expm_skew.h"
NORMS = [0.0, 1e-8, 1e-3, 0.02, 0.1, 0.4, 1.5, 6.0, 40.0, 600.0]
LARGEST_SIMULATED = (64, 6.0, torch.float64)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def angles(n, norm, batch=2, dtype=torch.float64):
    """Theta such that theta - theta^T has this 1-norm."""
    theta = torch.randn(batch, n, n, dtype=torch.float64)
    size = torch.linalg.matrix_norm(theta - theta.mT, 1).max().clamp_min(1e-30)
    return (theta * (norm / size)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 8, 13, 64, 70])
def test_values_and_gradients_agree_with_float64(backend, n, norm, dtype):
    if backend.name == "simt" and n > 13 and (n, norm, dtype) != LARGEST_SIMULATED:
        pytest.skip("slow there; the other sizes see every norm")
    theta = angles(n, norm, dtype=dtype).to(backend.device).requires_grad_()
    exact = theta.detach().double().requires_grad_()
    g = torch.randn(2, n, n, dtype=torch.float64, device=backend.device)
    got, want = expm_skew(theta), expm_skew_reference(exact)
    # The condition of the problem: a rounded theta moves the result by its norm times eps.
    unit = torch.finfo(dtype).eps * max(norm, 1.0)
    assert (got.double() - want).abs().max() < 30 * unit
    (a,) = torch.autograd.grad(got, theta, g.to(dtype))
    (b,) = torch.autograd.grad(want, exact, g.to(dtype).double())
    # torch's own gradient is off by some 200 units at the larger sizes.
    bound = 600 if dtype == torch.float64 or backend.name == "reference" else 30
    assert (a.double() - b).norm() <= bound * unit * b.norm()


@pytest.mark.parametrize("norm", [0.0, 0.01, 1.0, 20.0])
@pytest.mark.parametrize("n", [2, 5])
def test_derivatives_against_finite_differences(backend, n, norm):
    if backend.name == "simt" and (n > 2 or norm in (0.0, 1.0)):
        pytest.skip("slow there; test_values_and_gradients sees all sizes and norms")
    theta = angles(n, norm).to(backend.device).requires_grad_()
    assert torch.autograd.gradcheck(expm_skew, theta)
    if backend.name != "simt":
        assert torch.autograd.gradgradcheck(expm_skew, theta, atol=1e-4)


def test_derivatives_by_products_against_finite_differences():
    class Products(torch.autograd.Function):
        @staticmethod
        def forward(ctx, theta):
            ctx.save_for_backward(theta, *expm_products.forward(theta, True))
            return expm_products.forward(theta, False)[0]

        @staticmethod
        def backward(ctx, grad):
            return expm_products.backward(grad, *ctx.saved_tensors)

    for norm in (0.0, 0.01, 1.0, 20.0):
        assert torch.autograd.gradcheck(Products.apply, angles(4, norm).requires_grad_())


@pytest.mark.parametrize("n", [4, 64, 80])
def test_results_are_rotations(backend, n):
    if backend.name == "simt" and n == 64:
        n = 20
    q = expm_skew(angles(n, 30.0).to(backend.device))
    eye = torch.eye(n, dtype=q.dtype, device=q.device)
    assert (q @ q.mT - eye).abs().max() < 1e-12
    assert (torch.linalg.det(q) - 1).abs().max() < 1e-11


def test_a_plane_rotation_in_closed_form(backend):
    for angle in (0.0, 1e-6, 0.3, 3.0, 100.0):
        theta = torch.tensor([[0.0, angle], [0.0, 0.0]], dtype=torch.float64)
        c, s = math.cos(angle), math.sin(angle)
        want = torch.tensor([[c, s], [-s, c]], dtype=torch.float64)
        assert (expm_skew(theta.to(backend.device)).cpu() - want).abs().max() < 1e-13


def test_no_angle_gives_the_identity_to_the_bit(backend):
    eye = torch.eye(6, device=backend.device)
    assert torch.equal(expm_skew(torch.zeros(6, 6, device=backend.device)), eye)


@pytest.mark.parametrize("shape", [(0, 3, 3), (2, 0, 4, 4), (3, 0, 0), (4, 4), (2, 3, 5, 5)])
def test_batches_of_any_shape(backend, shape):
    theta = torch.randn(shape, device=backend.device, requires_grad=True)
    q = expm_skew(theta)
    assert q.shape == theta.shape
    assert torch.allclose(q, expm_skew_reference(theta), atol=1e-5)
    q.sum().backward()
    assert theta.grad.shape == theta.shape


def test_views_and_half_types(backend):
    theta = torch.randn(7, 3, 7, device=backend.device).permute(1, 2, 0)
    assert torch.allclose(expm_skew(theta), expm_skew_reference(theta), atol=1e-5)
    half = theta.bfloat16().requires_grad_()
    q = expm_skew(half)
    assert q.dtype == torch.bfloat16
    assert torch.allclose(q, expm_skew_reference(half), atol=1e-2)
    q.sum().backward()
    assert half.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("n", [5, 70])
def test_not_a_number_stays_one(backend, n):
    theta = torch.randn(2, n, n, device=backend.device)
    theta[0, 1, 2] = math.nan
    q = expm_skew(theta)
    assert q[0].isnan().any()


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 64), batch=st.integers(1, 5), power=st.floats(-6, 2.5))
def test_any_size_on_the_cpu(n, batch, power):
    theta = angles(n, 10**power, batch).requires_grad_()
    g = torch.randn_like(theta)
    got, want = expm_skew(theta), expm_skew_reference(theta)
    # torch's own is off by up to 2e-13 where the norm is small, of 33x33 for instance.
    assert (got - want).abs().max() < 1e-12 * max(1, 10**power)
    (a,), (b,) = (torch.autograd.grad(e, theta, g) for e in (got, want))
    assert (a - b).norm() <= 1e-12 * max(1, 10**power) * b.norm().clamp_min(1e-3)


def test_forward_mode():
    theta, tangent = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    _, got = torch.func.jvp(expm_skew, (theta,), (tangent,))
    _, want = torch.func.jvp(expm_skew_reference, (theta,), (tangent,))
    assert torch.allclose(got, want, atol=1e-12)


@pytest.mark.parametrize("n", [4, 70])
def test_functional_transforms(n):
    theta = torch.randn(3, n, n, dtype=torch.float64) / n

    def loss(t):
        return expm_skew(t).sin().sum()

    def reference(t):
        return expm_skew_reference(t).sin().sum()

    got = torch.func.vmap(torch.func.grad(loss))(theta)
    want = torch.func.grad(lambda t: reference(t))(theta)
    assert torch.allclose(got, want, atol=1e-10)


@pytest.mark.parametrize("n", [4, 70])
def test_opcheck(n):
    theta = torch.randn(3, n, n)
    small = n <= 64
    forward = kernels.raw().expm_skew if small else _forward_by_products
    backward = kernels.raw().expm_skew_backward if small else _backward_by_products
    # Under symbolic shapes n may be on either side of the limit, so products are not opchecked
    # with these.
    checks = ["test_schema", "test_faketensor"]
    if small:
        checks += ["test_autograd_registration", "test_aot_dispatch_dynamic"]
    for save in (True, False):
        torch.library.opcheck(forward, (theta, save), test_utils=checks)
    result, tape, plan = forward(theta, True)
    args = (torch.randn_like(theta), theta, result, tape, plan)
    torch.library.opcheck(backward, args, test_utils=checks)


@pytest.mark.compiler
@pytest.mark.parametrize("n", [4, 70])
def test_compiles_in_one_graph(n):
    theta = (torch.randn(2, n, n) / n).requires_grad_()

    def loss(t):
        return expm_skew(t).sin().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (a,) = torch.autograd.grad(compiled(theta), theta)
    (b,) = torch.autograd.grad(loss(theta), theta)
    assert torch.allclose(a, b, atol=1e-5)


def test_the_backward_reference_is_the_gradient():
    theta = angles(6, 2.0).requires_grad_()
    g = torch.randn_like(theta)
    (want,) = torch.autograd.grad(expm_skew_reference(theta), theta, g)
    assert torch.allclose(backward_reference(g, theta), want, atol=1e-12)


def test_the_gradient_runs_on_the_kernels(monkeypatch):
    calls = []
    plain = _ExpmSkewBackward.forward

    def counted(*args):
        calls.append(1)
        return plain(*args)

    monkeypatch.setattr(_ExpmSkewBackward, "forward", staticmethod(counted))
    expm_skew(torch.randn(4, 4, requires_grad=True)).sum().backward()
    assert calls == [1]


@pytest.mark.parametrize("theta", [torch.ones(3), torch.ones(2, 3), torch.ones(3, 3).int()])
def test_bad_input_is_refused_with_what_is_accepted(theta):
    with pytest.raises(ValueError, match=r"square matrices|floating"):
        expm_skew(theta)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_polynomials_hold_what_the_ladder_promises(dtype):
    """In extended precision, up to each rung's limit."""
    import mpmath

    unit = torch.finfo(dtype).eps / 2
    for rung in LADDERS[dtype]:
        for i in range(101):
            x = mpmath.mpf(rung.limit) * i / 100
            c = mpmath.polyval(rung.c[::-1], -x * x)
            s = x * mpmath.polyval(rung.s[::-1], -x * x)
            # Coefficients are rounded to doubles here, hence a unit more.
            assert abs(c - mpmath.cos(x)) < 1.5 * unit and abs(s - mpmath.sin(x)) < 1.5 * unit


def test_the_kernels_hold_the_same_numbers():
    text = re.sub(r"//.*", "", HEADER.read_text(encoding="utf-8"))
    for dtype, name in ((torch.float32, "float"), (torch.float64, "double")):
        body = text.split(f"Rung<{name}> rung(int which, {name}) {{")[1].split("\n}\n")[0]
        returns = [part.split("}};")[0] for part in body.split("return {")[1:]]
        found = [
            [float(v) for v in re.findall(r"[\d.]+(?:e-?\d+)?", part.replace("f", ""))]
            for part in returns
        ]
        want = [[len(r.c) - 1, r.limit, *r.c, *r.s] for r in LADDERS[dtype]]
        assert found == want


def test_plans_bring_every_radius_below_the_limit():
    for radius in (0.0, 0.1, 0.3, 1.0, 2.65, 2.66, 600.0):
        which, halvings = plan_for(radius, torch.float32)
        limit = LADDERS[torch.float32][which].limit
        assert radius * 0.5**halvings <= limit
        assert halvings == 0 or radius * 0.5 ** (halvings - 1) > limit
