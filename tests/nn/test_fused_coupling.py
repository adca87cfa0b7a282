"""A sub-network that ends with NormAct is added to its stream in one pass, with the same bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from revgrad import AdditiveCoupling, ReversibleSequence
from revgrad.errors import ReversibleError
from revgrad.memory import measure
from revgrad.nn import NormAct

NORMS = {
    "instance": {"affine": True},
    "group": {"groups": 2},
    "batch": {},
    "instance with running statistics": {"track_running_stats": True},
    "batch without affine": {"affine": False},
}


def made(channels, kind="instance", activation="leaky_relu", units=1, nested=False):
    norm = next(n for n in ("instance", "group", "batch") if kind.startswith(n))
    layers = []
    for _ in range(units):
        layers.append(nn.Conv2d(channels, channels, 3, padding=1, bias=False))
        layers.append(NormAct(channels, norm, activation, **NORMS[kind]))
    if nested:
        layers = [nn.Sequential(*layers), nn.Identity()]
    return nn.Sequential(*layers)


def results(net, x, grad):
    """Output, gradients and buffers, with and without storing."""
    found = []
    buffers = [b.clone() for b in net.buffers()]
    for net.save_memory in (True, False):
        for b, before in zip(net.buffers(), buffers, strict=True):
            b.copy_(before)
        net.zero_grad()
        x = x.detach().requires_grad_()
        y = net(x)
        y.backward(grad)
        grads = [x.grad, *(p.grad.clone() for p in net.parameters())]
        found.append([y.detach(), *grads, *(b.clone() for b in net.buffers())])
    return found


@pytest.fixture
def uses(monkeypatch):
    """Counts how often a value was added or subtracted in one pass."""
    found = []

    def count(name):
        original = getattr(NormAct, name)

        def counted(self, stream, x, *, sign, fraction_bits):
            found.append(sign)
            return original(self, stream, x, sign=sign, fraction_bits=fraction_bits)

        monkeypatch.setattr(NormAct, name, counted)

    count("update_")
    count("updated")
    return found


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(NORMS)),
    activation=st.sampled_from(["none", "relu", "leaky_relu", "silu", "gelu"]),
    arithmetic=st.sampled_from(["float", "exact"]),
    training=st.booleans(),
    channels_last=st.booleans(),
    batch=st.sampled_from([1, 2, 3]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    autocast=st.booleans(),
    nested=st.booleans(),
    two=st.booleans(),
)
def test_as_ordinary_autograd(
    kind, activation, arithmetic, training, channels_last, batch, dtype, autocast, nested, two
):
    torch.manual_seed(0)
    layers = [
        AdditiveCoupling(
            made(4, kind, activation, units=2, nested=nested),
            made(4, kind, activation) if two else None,
        )
        for _ in range(3)
    ]
    net = ReversibleSequence(layers, arithmetic=arithmetic).to(dtype).train(training)
    x, grad = (torch.randn(batch, 8, 9, 7).to(dtype) for _ in range(2))
    if channels_last:
        net = net.to(memory_format=torch.channels_last)
        x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast and dtype == torch.float32):
        saved, plain = results(net, x, grad)
    if arithmetic == "exact":
        assert all(map(torch.equal, saved, plain))
    elif dtype == torch.float64:
        for a, b in zip(saved, plain, strict=True):
            assert (a - b).abs().max() <= 1e-10 * (1 + b.abs().max())
    assert torch.equal(saved[0], plain[0])  # the forward pass has the bits of two steps


@pytest.mark.parametrize("arithmetic", ["float", "exact"])
def test_once_forward_and_once_backward(uses, arithmetic):
    net = ReversibleSequence([AdditiveCoupling(made(3), made(3))], arithmetic=arithmetic)
    net(torch.randn(2, 6, 4, 4)).sum().backward()
    assert uses == [1, 1, -1, -1]
    with torch.no_grad():
        net(torch.randn(2, 6, 4, 4))
    assert len(uses) == 4


def with_hook(f):
    f[-1].register_forward_hook(lambda *_: None)
    return f


def with_hook_on_all(f):
    f.register_forward_pre_hook(lambda *_: None)
    return f


def with_backward_hook(f):
    f[-1].register_full_backward_hook(lambda *_: None)
    return f


class Square(nn.Module):
    def forward(self, weight):
        return 1 + weight * weight


def with_parametrization(f):
    nn.utils.parametrize.register_parametrization(f[-1], "weight", Square())
    return f


def with_own_forward(f):
    f[-1].forward = lambda x: 2 * type(f[-1]).forward(f[-1], x)
    return f


class Codebook(nn.Module):
    """Has an `update_`, too, but of its own kind."""

    def forward(self, x):
        return x.sin()

    def update_(self, stream):
        return stream


class Doubled(NormAct):
    def forward(self, x):
        return 2 * super().forward(x)


class Backwards(nn.Sequential):
    def forward(self, x):
        return super().forward(x.flip(-1))


@pytest.mark.parametrize(
    "f",
    [
        with_hook(made(3)),
        with_hook_on_all(made(3)),
        with_backward_hook(made(3)),
        with_own_forward(made(3)),
        with_parametrization(made(3)),
        nn.Sequential(nn.Conv2d(3, 3, 1), Codebook()),
        nn.Sequential(nn.Conv2d(3, 3, 1), Doubled(3)),
        Backwards(nn.Conv2d(3, 3, 1), NormAct(3)),
        nn.Sequential(nn.Conv2d(3, 3, 1), NormAct((3, 4, 4), "layer")),
        nn.Sequential(nn.Conv2d(3, 3, 1), NormAct(3), nn.Dropout(0.1)),
        nn.Sequential(),
    ],
    ids=[
        *("hook", "hook on all", "backward hook", "forward", "parametrization", "codebook"),
        *("subclass", "sequential", "layer", "dropout", "empty"),
    ],
)
def test_what_runs_differently_is_not_fused(uses, f):
    net = ReversibleSequence([AdditiveCoupling(f)]).double()
    for a, b in zip(*_repeated(net), strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    assert not uses


def _repeated(net):
    torch.manual_seed(1)
    x = torch.randn(2, 6, 4, 4).double().requires_grad_()
    found = []
    for net.save_memory in (True, False):
        torch.manual_seed(2)
        net.zero_grad()
        y = net(x)
        y.square().sum().backward()
        found.append([y.detach(), *(p.grad.clone() for p in net.parameters())])
    return found


def test_a_weight_that_is_no_parameter_is_not_lost(uses):
    tail = NormAct(3, affine=True)
    made = nn.Parameter(torch.randn(3).double())
    del tail._parameters["weight"]
    tail.weight = 2 * made
    net = ReversibleSequence([AdditiveCoupling(nn.Sequential(nn.Conv2d(3, 3, 1), tail))]).double()
    with pytest.raises(ReversibleError, match="its gradient would be lost"):
        net(torch.randn(2, 6, 4, 4).double()).square().sum().backward()
    assert not uses


def test_a_layer_that_evaluates_in_its_own_way_is_asked():
    class Tripled(AdditiveCoupling):
        def run(self, module, x, *args, **kwargs):
            return 3 * super().run(module, x, *args, **kwargs)

    torch.manual_seed(0)
    net, x = ReversibleSequence([Tripled(made(3))]).double(), torch.randn(2, 6, 4, 4).double()
    saved = net(x)
    net.save_memory = False
    assert torch.equal(saved, net(x))


def test_double_backward():
    torch.manual_seed(0)
    net = ReversibleSequence([AdditiveCoupling(made(2)), AdditiveCoupling(made(2))]).double()
    assert torch.autograd.gradgradcheck(net, torch.randn(1, 4, 3, 3).double().requires_grad_())


@pytest.mark.parametrize("arithmetic", ["float", "exact"])
def test_streams_that_a_hook_holds_are_not_written_into(uses, arithmetic):
    first = nn.Conv2d(3, 3, 1)
    kept = []
    first.register_forward_hook(lambda _, inputs, __: kept.append((inputs[0], inputs[0].clone())))
    layers = [AdditiveCoupling(made(3)), AdditiveCoupling(nn.Sequential(first, NormAct(3)))]
    ReversibleSequence(layers, arithmetic=arithmetic)(torch.randn(2, 6, 4, 4)).sum().backward()
    assert uses == [1, 1, -1, -1] and len(kept) == 2
    assert all(torch.equal(*pair) for pair in kept)


def test_frozen_parameters():
    net = ReversibleSequence([AdditiveCoupling(made(3))]).double()
    net[0].f[-1].weight.requires_grad_(False)
    net(torch.randn(2, 6, 4, 4).double()).square().sum().backward()
    assert net[0].f[-1].weight.grad is None and net[0].f[-1].bias.grad is not None


def test_shared_tail_gets_both_gradients():
    torch.manual_seed(0)
    tail = NormAct(3, affine=True)
    f, g = (nn.Sequential(nn.Conv2d(3, 3, 1), tail) for _ in range(2))
    net = ReversibleSequence([AdditiveCoupling(f, g), AdditiveCoupling(f)]).double()
    for a, b in zip(*_repeated(net), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("arithmetic", ["float", "exact"])
def test_values_that_do_not_fit_are_refused(arithmetic):
    wide = nn.Sequential(nn.Conv2d(3, 4, 1), NormAct(4))
    net = ReversibleSequence([AdditiveCoupling(wide)], arithmetic=arithmetic)
    with pytest.raises(ReversibleError, match=r"layer 0 .*gave shape \(2, 4, 4, 4\).*\(2, 3, 4, 4"):
        net(torch.randn(2, 6, 4, 4))
    double = nn.Sequential(nn.Conv2d(3, 3, 1), NormAct(3)).double()
    net = ReversibleSequence([AdditiveCoupling(nn.Sequential(ToDouble(), *double))])
    with pytest.raises(ReversibleError, match="float64, which does not fit into a stream of"):
        net(torch.randn(2, 6, 4, 4))


class ToDouble(nn.Module):
    def forward(self, x):
        return x.double()


# --- range --------------------------------------------------------------------------------------


def test_values_that_are_not_finite_are_noticed():
    net = ReversibleSequence([AdditiveCoupling(made(3))], arithmetic="exact")
    with torch.no_grad():
        net[0].f[0].weight[0] = torch.nan
    with pytest.raises(ReversibleError, match=r"layer 0 .*value of the sub-network is not finite"):
        net(torch.randn(2, 6, 4, 4))


def test_values_without_variance_are_noticed():
    f = nn.Sequential(nn.Conv2d(3, 3, 1), NormAct(3, "instance", eps=0.0, affine=True))
    with torch.no_grad():
        f[0].weight.zero_()
    net = ReversibleSequence([AdditiveCoupling(f)], arithmetic="exact")
    with pytest.raises(ReversibleError, match=r"value of the sub-network is not finite"):
        net(torch.randn(2, 6, 4, 4))


def test_not_fused_where_the_bound_is_too_coarse(uses):
    """The value may reach sqrt(n) times the weight, but does not."""
    net = ReversibleSequence([AdditiveCoupling(made(3))], arithmetic="exact", fraction_bits=24)
    net(torch.randn(2, 6, 16, 16)).sum().backward()
    assert uses == [1, -1]
    with torch.no_grad():
        net[0].f[-1].weight.fill_(5)
    net(torch.randn(2, 6, 16, 16)).sum().backward()
    assert uses == [1, -1]


def test_many_coarse_bounds_do_not_add_up_to_an_error(uses):
    net = ReversibleSequence([AdditiveCoupling(made(3)) for _ in range(30)], arithmetic="exact")
    net(torch.randn(1, 6, 128, 128)).sum().backward()
    assert len(uses) == 60  # bounds of 128 each, the range is 2048


@pytest.mark.parametrize("kind", ["instance", "group", "batch"])
@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu", "silu", "gelu"])
def test_bound_holds(kind, activation):
    torch.manual_seed(0)
    module = NormAct(4, kind, activation, **NORMS[kind], slope=-3.0)
    with torch.no_grad():
        module.weight.normal_(), module.bias.normal_()
    x = torch.zeros(2, 4, 5, 5)
    x[:, :, 2, 3] = torch.randn(2, 4) * 1e4  # one number far from all others
    largest = module(x).abs().max()
    bound = module.largest(x.shape)
    assert largest <= bound
    assert largest > 0.2 * bound or activation == "relu"


@pytest.mark.parametrize("n", [2, 3, 5, 100])
def test_bound_holds_for_neighbouring_numbers_far_from_zero(n):
    """Where the rounded mean is one of the numbers."""
    x = torch.full((1, 1, n), 1e10)
    x[..., 0] += 1024
    module = NormAct(1, eps=1e-12)
    assert module(x).abs().max() <= module.largest(x.shape)


# --- memory -------------------------------------------------------------------------------------


def peak(f, arithmetic="float"):
    net = ReversibleSequence([AdditiveCoupling(f()) for _ in range(4)], arithmetic=arithmetic)
    net = net.to(memory_format=torch.channels_last)
    x = torch.randn(1, 16, 128, 128).contiguous(memory_format=torch.channels_last)
    report = measure(lambda: net(x).sum().backward(), net)
    weights = sum(p.numel() * 4 for p in net.parameters())
    return (report.peak_without_scratch - 2 * weights) / (x.numel() * 4)


@pytest.mark.parametrize("units", [1, 2])
def test_less_memory_than_torchs_norms(units):
    """In activations of both streams: of a fused unit only its convolution's result is kept."""

    def stock():
        layers = []
        for _ in range(units):
            norm = nn.InstanceNorm2d(8, affine=True)
            layers += [nn.Conv2d(8, 8, 3, padding=1, bias=False), norm, nn.LeakyReLU()]
        return nn.Sequential(*layers)

    fused = peak(lambda: made(8, units=units))
    assert fused <= peak(stock) - 0.45 * units
