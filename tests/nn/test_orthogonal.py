"""Learnable orthogonal matrices and the resampling by them."""

import copy
import math

import pytest
import torch
from torch import nn

from revgrad import (
    AdditiveCoupling,
    ChannelMixing,
    FixedPoint,
    HaarDownsample,
    OrthogonalDownsample,
    OrthogonalUpsample,
    PixelShuffleDownsample,
    ReversibleError,
    ReversibleSequence,
)
from revgrad.fixed_point.rotation import Lifting, growth
from revgrad.memory import measure
from revgrad.nn.orthogonal import METHODS, OrthogonalMatrices, block_transform, rounds

DOUBLE = torch.float64


def orthogonal(count, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(count, n, n, dtype=DOUBLE, generator=generator))[0]


def moved(matrices, by=0.7):
    """As after some training."""
    with torch.no_grad():
        matrices.theta.add_(by * torch.randn_like(matrices.theta))
    return matrices


def deviation(q):
    return (q @ q.mT - torch.eye(q.shape[-1], dtype=q.dtype)).abs().max().item()


# --- matrices -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8, 27])
@pytest.mark.parametrize("method", METHODS)
def test_matrices_are_orthogonal_begin_at_the_start_and_keep_its_determinant(method, n):
    torch.manual_seed(0)
    start = orthogonal(5, n)
    matrices = OrthogonalMatrices(start, method)
    assert matrices().dtype == DOUBLE and (matrices() - start).abs().max() < 1e-13
    q = moved(matrices)()
    assert deviation(q) < 1e-13
    assert torch.allclose(torch.linalg.det(q), torch.linalg.det(start))
    assert n == 1 or (q - start).abs().max() > 0.1


@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_the_parameters(method):
    torch.manual_seed(0)
    matrices = moved(OrthogonalMatrices(orthogonal(2, 4), method))

    def of(theta):
        return torch.func.functional_call(matrices, {"theta": theta}, ())

    assert torch.autograd.gradcheck(of, matrices.theta.detach().requires_grad_())


@pytest.mark.parametrize("method", METHODS)
def test_every_rotation_is_near(method):
    """Training reaches a given rotation."""
    torch.manual_seed(0)
    matrices = moved(OrthogonalMatrices(torch.eye(4, dtype=DOUBLE)[None], method), 0.1)
    target = torch.linalg.matrix_exp(torch.tensor([[0, 1, 0.3, 0], [-1, 0, 0, 0.5],
                                                   [-0.3, 0, 0, 1], [0, -0.5, -1, 0]],
                                                  dtype=DOUBLE))  # fmt: skip
    optimizer = torch.optim.Adam(matrices.parameters(), lr=0.05)
    for _ in range(600):
        loss = (matrices() - target).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_coarser_types_are_orthogonal_again(dtype):
    matrices = OrthogonalMatrices(orthogonal(5, 8).float()).to(dtype)
    assert matrices().dtype == torch.float32 and deviation(matrices()) < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        q = matrices()
    assert deviation(q) < 1e-5
    assert deviation(OrthogonalMatrices(orthogonal(5, 8).float()).double()()) < 1e-13


def test_bad_matrices_are_refused():
    with pytest.raises(ValueError, match=r"method must be one of .*, not 'qr'"):
        OrthogonalMatrices(orthogonal(1, 2), "qr")
    with pytest.raises(ValueError, match=r"must be \(count, n, n\), not \(2, 2\)"):
        OrthogonalMatrices(torch.eye(2))
    with pytest.raises(ValueError, match=r"not orthogonal: Q Q\^T is off by 3"):
        OrthogonalMatrices(2 * torch.eye(2)[None])


def test_rounds_have_every_pair_once():
    for n in range(2, 10):
        pairs = [pair for first, second in rounds(n) for pair in zip(first, second, strict=True)]
        assert sorted(pairs) == [(i, j) for i in range(n) for j in range(i + 1, n)]


def test_starts():
    average = block_transform("haar", (3, 2), 1)[0, 0]
    assert torch.allclose(average, torch.full((6,), 1 / math.sqrt(6)))
    for init in ("haar", "pixel_shuffle", "random", orthogonal(1, 6)[0], orthogonal(4, 6)):
        q = block_transform(init, (3, 2), 4)
        assert q.shape == (4, 6, 6) and deviation(q) < 1e-6
    random = block_transform("random", (2, 2), 2)
    assert not torch.allclose(random[0], random[1])
    with pytest.raises(ValueError, match=r"init must be a tensor or one of .*, not 'dct'"):
        block_transform("dct", (2, 2), 1)
    with pytest.raises(ValueError, match=r"init must be \(4, 4\) or \(3, 4, 4\), not \(2, 2\)"):
        block_transform(torch.eye(2), (2, 2), 3)


# --- integers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 4, 8, 9, 27])
@pytest.mark.parametrize("kind", ["random", "identity", "minus", "permutation", "half turns"])
def test_lifting_is_undone_to_the_bit_and_close_to_the_product(n, kind):
    torch.manual_seed(0)
    q = {
        "random": orthogonal(3, n),
        "identity": torch.eye(n, dtype=DOUBLE).expand(3, n, n),
        "minus": -torch.eye(n, dtype=DOUBLE).expand(3, n, n),
        "permutation": torch.eye(n, dtype=DOUBLE)[torch.randperm(n)].expand(3, n, n),
        "half turns": torch.diag(torch.tensor([(-1.0) ** i for i in range(n)]).double()).expand(
            3, n, n
        ),
    }[kind]
    before = q.clone()
    lifting = Lifting.of(q)
    assert torch.equal(q, before)
    x = torch.randint(-(2**24), 2**24, (2, 3, n, 50), dtype=torch.int32)
    y = lifting.apply(x)
    assert torch.equal(lifting.undo(y), x)
    assert torch.equal(lifting.apply(lifting.undo(x)), x)
    product = torch.einsum("cij,ncj...->nci...", q, x.double())
    assert (y - product).abs().max() <= 1 + 0.5 * n
    assert y.abs().max() <= growth(n) * x.abs().max()


# --- layers -------------------------------------------------------------------------------------


def network(method, init="random", arithmetic="float", dtype=DOUBLE):
    torch.manual_seed(0)

    down = OrthogonalDownsample(7, 2, method=method, init=init)
    wide = OrthogonalDownsample(7, 2, (1, 3), method=method, init=init)
    moved(down.matrices), moved(wide.matrices)
    layers: list[nn.Module] = [
        AdditiveCoupling(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Tanh())),  # exchanges 4 and 3
        AdditiveCoupling(nn.Sequential(nn.Conv2d(4, 3, 1), nn.Tanh())),
        down,
        AdditiveCoupling(nn.Conv2d(12, 16, 1), nn.Conv2d(16, 12, 1)),
        OrthogonalUpsample(7, 2, matrices=down.matrices),
        ChannelMixing(7, method=method, init="random"),
        wide,
        OrthogonalUpsample(7, 2, (1, 3), method=method, init=init),
    ]
    return ReversibleSequence(layers, arithmetic=arithmetic).to(dtype)


def results(net, x):
    found = []
    for save_memory in (True, False):
        net.save_memory = save_memory
        net.zero_grad()
        x = x.detach().requires_grad_()
        y = net(x)
        (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
        found.append([y.detach(), x.grad, *(p.grad.clone() for p in net.parameters())])
    net.save_memory = True
    return found


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_in_float_arithmetic(method, channels_last):
    net, x = network(method), torch.randn(2, 7, 8, 6, dtype=DOUBLE)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    for a, b in zip(*results(net, x), strict=True):
        assert (a - b).abs().max() <= 1e-11 * (1 + b.abs().max())
    assert (net.inverse(net(x)) - x).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_in_exact_arithmetic(method, dtype):
    net, x = network(method, arithmetic="exact", dtype=dtype), torch.randn(2, 7, 8, 6).to(dtype)
    shared = {id(p) for p in net[2].matrices.parameters()}
    names = ["y", "x", *("shared" if id(p) in shared else "" for p in net.parameters())]
    for name, a, b in zip(names, *results(net, x), strict=True):
        # Both layers give the shared matrices a gradient: the order of summation differs.
        assert torch.equal(a, b) or (name == "shared" and torch.allclose(a, b, rtol=1e-2))
    assert "input stored" not in repr(net)
    x = FixedPoint.from_float(x)
    with torch.no_grad():
        assert torch.equal(net.inverse(net(x)).integers, x.integers)


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_mixing_is_a_matrix_product(spatial_dims):
    torch.manual_seed(0)
    layer = ChannelMixing(5, init="random")
    x = torch.randn(2, 5, *[4] * spatial_dims)
    expected = torch.einsum("ij,nj...->ni...", layer.matrices()[0], x)
    y1, y2 = layer(*x.split([3, 2], 1))
    assert y1.shape[1] == 3 and torch.allclose(torch.cat((y1, y2), 1), expected, atol=1e-6)
    assert torch.equal(torch.cat(ChannelMixing(5)(*x.split([3, 2], 1)), 1), x)
    with pytest.raises(ValueError, match="init must be a tensor, 'identity' or 'random'"):
        ChannelMixing(5, init="haar")
    with pytest.raises(ReversibleError, match=r"layer 0 .* made for 4 channels, .* have 3 \+ 2"):
        ReversibleSequence([ChannelMixing(4)])(x)


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_starts_are_the_fixed_layers(spatial_dims):
    x = torch.randn(2, 6, *[4] * spatial_dims)
    for init, fixed in (("haar", HaarDownsample), ("pixel_shuffle", PixelShuffleDownsample)):
        layer = OrthogonalDownsample(6, spatial_dims, init=init)
        expected = fixed(spatial_dims)(*x.chunk(2, 1))
        for a, b in zip(layer(*x.chunk(2, 1)), expected, strict=True):
            assert torch.allclose(a, b, atol=1e-6)
        up = OrthogonalUpsample(6, spatial_dims, init=init)
        for a, b in zip(up(*expected), x.chunk(2, 1), strict=True):
            assert torch.allclose(a, b, atol=1e-6)


def test_double_backward():
    net, x = network("exp"), torch.randn(1, 7, 4, 6, dtype=DOUBLE, requires_grad=True)
    found = []
    for net.save_memory in (True, False):
        (grad,) = torch.autograd.grad(net(x).sin().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), [x, *net.parameters()]))
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= 1e-10 * (1 + b.abs().max())


def test_frozen_matrices_and_copies():
    net, x = network("exp"), torch.randn(2, 7, 8, 6, dtype=DOUBLE)
    net[2].matrices.requires_grad_(False)
    net(x).sum().backward()
    assert net[2].matrices.theta.grad is None and net[6].matrices.theta.grad is not None
    twin = copy.deepcopy(net)
    assert twin[4].matrices is twin[2].matrices and torch.equal(twin(x), net(x))


def test_errors_name_what_is_accepted():
    with pytest.raises(ValueError, match="spatial_dims must be 1, 2 or 3, not 4"):
        OrthogonalDownsample(4, 4)
    with pytest.raises(ValueError, match=r"stride must be .* or 2 of them, not \(2, 2, 2\)"):
        OrthogonalDownsample(4, 2, (2, 2, 2))
    with pytest.raises(ValueError, match=r"need \(6, 4, 4\)"):
        OrthogonalUpsample(6, 2, matrices=OrthogonalDownsample(4, 2).matrices)
    net = ReversibleSequence([OrthogonalDownsample(4, 2)])
    with pytest.raises(ReversibleError, match=r"layer 0 .* made for 4 channels .* have 3 \+ 3"):
        net(torch.randn(1, 6, 4, 4))
    with pytest.raises(ValueError, match="must divide by stride"):
        net(torch.randn(1, 4, 5, 4))


@pytest.mark.parametrize("arithmetic", ["float", "exact"])
def test_mixing_works_in_place_but_not_in_what_somebody_else_holds(arithmetic):
    """The input of a sub-network, computed back, is the output of the mixing before it."""
    torch.manual_seed(0)
    f = nn.Conv2d(3, 3, 1)
    layers = [ChannelMixing(6, init="random"), AdditiveCoupling(f)]
    net = ReversibleSequence(layers, arithmetic=arithmetic)
    kept = []
    f.register_forward_hook(lambda _, inputs, __: kept.append((inputs[0], inputs[0].clone())))
    net(torch.randn(2, 6, 8, 8, requires_grad=True)).sum().backward()
    assert len(kept) == 2 and torch.equal(*kept[1])


def test_memory_of_mixing():
    """Inputs and gradients of both sides, of which the inputs share memory; nothing joined."""
    mixing = ReversibleSequence([ChannelMixing(8, init="random")])
    x = torch.randn(1, 8, 128, 128, 8)  # 64 pieces
    activation = x.numel() * x.element_size()
    report = measure(lambda: mixing(x).sum().backward(), mixing)
    # The output and its copy on the tape, two gradients; the input was there before.
    assert report.peak_without_scratch < 5.2 * activation


@pytest.mark.parametrize("size", [(), (5,), (3, 4, 2, 2), (0, 4)])
def test_mixing_of_any_number_of_axes(size):
    net = ReversibleSequence([ChannelMixing(5, init="random")]).double()
    for save_memory, x in zip((True, False), [torch.randn(3, 5, *size).double()] * 2, strict=True):
        net.save_memory = save_memory
        assert torch.autograd.gradcheck(net, x.requires_grad_()) if x.numel() else True
        y = net(x)
        assert y.shape == x.shape and torch.allclose(net.inverse(y), x)


def test_mixing_of_an_empty_batch_in_exact_arithmetic():
    net = ReversibleSequence([ChannelMixing(6)], arithmetic="exact")
    assert net(torch.randn(0, 6, 4, 4)).shape == (0, 6, 4, 4)


def test_mixing_of_gradients_in_any_layout():
    """Of one stream the gradient is passed on as the sub-network gave it."""

    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return torch.sin(self.conv(x.transpose(2, 3).contiguous())).transpose(2, 3)

    torch.manual_seed(0)
    mixing = ChannelMixing(6, init="random")
    net = ReversibleSequence([mixing, AdditiveCoupling(Turned())]).double()
    streams = tuple(torch.randn(2, 3, 4, 5).double().requires_grad_() for _ in range(2))
    found = []
    for net.save_memory in (True, False):
        found.append(torch.autograd.grad(net(streams)[1].square().sum(), streams))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=1e-12)
