"""The invertible 1x1 convolution: a matrix by its LU decomposition."""

import pytest
import torch

from revgrad import Invertible1x1Conv, ReversibleError, ReversibleSequence
from revgrad.memory import measure
from revgrad.nn import PLUMatrix

from .flows import DOUBLE, expect_same, jacobian_logdet, sequence


@pytest.mark.parametrize("n", [1, 2, 5, 32])
def test_the_matrix_and_its_inverse(n):
    torch.manual_seed(n)
    start = torch.randn(n, n, dtype=DOUBLE)
    matrix = PLUMatrix(start).double()
    assert (matrix() - start).abs().max() < 1e-5  # the parameters are made in float32
    w = matrix()
    assert (matrix.inverse() @ w - torch.eye(n)).abs().max() < 1e-9
    sign, logdet = torch.linalg.slogdet(w)
    assert (logdet - matrix.log_scale.sum()).abs() < 1e-9
    assert sign * torch.linalg.det(start) > 0


def test_what_the_triangles_hold_beyond_themselves_does_not_count():
    matrix = PLUMatrix(torch.randn(4, 4)).double()
    before = matrix().clone()
    with torch.no_grad():
        matrix.lower.add_(torch.ones(4, 4).triu())
        matrix.upper.add_(torch.ones(4, 4).tril())
    assert torch.equal(matrix(), before)


def test_starts():
    torch.manual_seed(0)
    w = Invertible1x1Conv(6).matrix()
    assert (w @ w.mT - torch.eye(6)).abs().max() < 1e-5
    assert (w - torch.eye(6)).abs().max() > 0.1
    assert torch.equal(Invertible1x1Conv(6, init="identity").matrix(), torch.eye(6))
    start = torch.randn(3, 3)
    assert (Invertible1x1Conv(3, init=start).matrix() - start).abs().max() < 1e-6


@pytest.mark.parametrize("shape", [(3, 5), (2, 5, 4), (2, 5, 2, 3), (2, 5, 2, 1, 3)])
def test_product_logdet_inverse_and_gradcheck(shape):
    torch.manual_seed(0)
    net = sequence([Invertible1x1Conv(5)])
    x = torch.randn(shape, dtype=DOUBLE)
    w = net[0].matrix()
    y, logdet = net(x, logdet=True)
    assert (y - torch.einsum("oc,nc...->no...", w, x)).abs().max() < 1e-12
    assert (logdet - jacobian_logdet(net, x)).abs().max() < 1e-12
    again, back = net.inverse(y, logdet=True)
    assert (again - x).abs().max() < 1e-11
    assert (back + logdet).abs().max() < 1e-12
    expect_same(net, x)
    names = [n for n, _ in net.named_parameters()]

    def run(x, *parameters):
        values = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(net, values, (x,), {"logdet": True})

    leaves = [t.detach().requires_grad_() for t in (x, *net.parameters())]
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_at_depth_50_in_either_format(memory_format):
    torch.manual_seed(0)
    net = sequence([Invertible1x1Conv(6) for _ in range(50)])
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.02 * torch.randn_like(p))
    x = torch.randn(2, 6, 3, 4, dtype=DOUBLE).contiguous(memory_format=memory_format)
    assert net(x).is_contiguous(memory_format=memory_format)
    expect_same(net, x, tolerance=1e-9)


def test_autocast_and_half_precision():
    torch.manual_seed(0)
    net = ReversibleSequence([Invertible1x1Conv(6)])
    x = torch.randn(2, 6, 4, 4)
    plain = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        y, logdet = net(x, logdet=True)
        again = net.inverse(y)
    assert (y - plain).abs().max() < 1e-6  # the matrix stays in float32
    assert (again - x).abs().max() < 1e-5
    (y.sum() + logdet.sum()).backward()
    y, logdet = net.bfloat16()(x.bfloat16(), logdet=True)
    assert (y.dtype, logdet.dtype) == (torch.bfloat16, torch.float32)
    logdet.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


def test_memory_grows_with_depth_by_weights_only():
    def rest(depth):
        net = ReversibleSequence([Invertible1x1Conv(8) for _ in range(depth)])
        buffers = sum(b.untyped_storage().nbytes() for b in net.buffers())
        x, dy = torch.randn(2, 2, 8, 32, 32).unbind()

        def step():
            y, logdet = net(x, logdet=True)
            torch.autograd.backward((y, logdet), (dy, torch.ones(2)))

        report = measure(step, net)
        return report.peak - report.parameters - report.gradients - buffers

    assert len({rest(depth) for depth in (2, 8, 24)}) == 1


def test_what_it_refuses():
    with pytest.raises(ValueError, match="has no inverse"):
        Invertible1x1Conv(3, init=torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"matrix \(3, 3\)"):
        Invertible1x1Conv(3, init=torch.ones(2, 2))
    with pytest.raises(ValueError, match="'identity' or 'random'"):
        Invertible1x1Conv(3, init="haar")
    with pytest.raises(ReversibleError, match=r"layer 0 \(Invertible1x1Conv\): made for 4"):
        ReversibleSequence([Invertible1x1Conv(4)])(torch.randn(1, 6, 2))
