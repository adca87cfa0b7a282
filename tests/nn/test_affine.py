"""Affine couplings: the formula, the inverse, gradients, what they store, what they refuse."""

import copy

import pytest
import torch
from torch import nn

from revgrad import (
    AdditiveCoupling,
    AffineCoupling,
    ReversibleError,
    ReversibleSequence,
    is_recomputing,
)
from revgrad.memory import measure

from .flows import (
    DOUBLE,
    calm,
    expect_same,
    gradients,
    jacobian_logdet,
    relative_errors,
    sequence,
    sub,
)

SCALES = ["tanh", "atan", "sigmoid"]


def couplings(depth, *, one=False, scale="tanh", channels=2):
    return [
        AffineCoupling(sub(channels), None if one else sub(channels), scale=scale)
        for _ in range(depth)
    ]


def log_scale(scale, a, b):
    """The table of the documentation."""
    return {
        "tanh": lambda: b * a.tanh(),
        "atan": lambda: b * 2 / torch.pi * a.atan(),
        "sigmoid": lambda: ((-b).exp() + (1 - (-b).exp()) * (a + 2).sigmoid()).log(),
    }[scale]()


@pytest.mark.parametrize("scale", SCALES)
def test_the_formula_with_two_sub_networks(scale):
    torch.manual_seed(0)
    layer = AffineCoupling(sub(3, 2), sub(2, 3), scale=scale, clamp=1.5).double()
    x1, x2 = torch.randn(4, 2, 3, 3, dtype=DOUBLE), torch.randn(4, 3, 3, 3, dtype=DOUBLE)
    b = torch.tensor(1.5, dtype=DOUBLE)
    a, t = layer.f(x2).chunk(2, 1)
    s_f = log_scale(scale, a, b)
    y1 = x1 * s_f.exp() + t
    a, t = layer.g(y1).chunk(2, 1)
    s_g = log_scale(scale, a, b)
    y2 = x2 * s_g.exp() + t
    logdet = s_f.flatten(1).sum(1) + s_g.flatten(1).sum(1)
    for found, expected in zip(layer(x1, x2, logdet=True), (y1, y2, logdet), strict=True):
        assert (found - expected).abs().max() < 1e-13
    for found, expected in zip(layer(x1, x2), (y1, y2), strict=True):
        assert (found - expected).abs().max() < 1e-13
    for found, expected in zip(layer.inverse(y1, y2, logdet=True), (x1, x2, -logdet), strict=True):
        assert (found - expected).abs().max() < 1e-13


def test_the_formula_with_one_sub_network_exchanges_the_streams():
    torch.manual_seed(0)
    layer = AffineCoupling(sub(3, 2)).double()
    x1, x2 = torch.randn(4, 2, 3, 3, dtype=DOUBLE), torch.randn(4, 3, 3, 3, dtype=DOUBLE)
    a, t = layer.f(x2).chunk(2, 1)
    y1, y2, logdet = layer(x1, x2, logdet=True)
    assert torch.equal(y1, x2)
    assert (y2 - (x1 * (2 * a.tanh()).exp() + t)).abs().max() < 1e-13
    assert (logdet - 2 * a.tanh().sum((1, 2, 3))).abs().max() < 1e-12
    assert layer.out_channels((2, 3)) == (3, 2)


@pytest.mark.parametrize("scale", SCALES)
def test_the_scale_is_bounded_whatever_the_sub_network_gives(scale):
    class Wild(nn.Module):
        def forward(self, x):
            return torch.cat((1e4 * x, torch.zeros_like(x)), 1)

    layer = AffineCoupling(Wild(), scale=scale, clamp=3.0)
    x = torch.tensor([-1.0, -1e-4, 0.0, 1e-4, 1.0]).view(5, 1)
    _, y = layer(torch.ones_like(x), x)
    upper = 1.0 if scale == "sigmoid" else 3.0
    assert (y >= torch.tensor(-3.0).exp() * 0.999).all()
    assert (y <= torch.tensor(upper).exp() * 1.001).all()
    assert (y.diff(dim=0) >= 0).all()


@pytest.mark.parametrize("one", [True, False])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_gradcheck_of_output_and_logdet(one, scale, spatial_dims):
    torch.manual_seed(0)
    f, g = (sub(2, spatial_dims=spatial_dims, hidden=2) for _ in range(2))
    net = sequence([AffineCoupling(f, None if one else g, scale=scale)])
    x = torch.randn(2, 4, *[2] * spatial_dims, dtype=DOUBLE, requires_grad=True)
    names = [n for n, _ in net.named_parameters()]

    def run(x, *parameters):
        values = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(net, values, (x,), {"logdet": True})

    parameters = [p.detach().requires_grad_() for p in net.parameters()]
    assert torch.autograd.gradcheck(run, (x, *parameters), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (x, *parameters), fast_mode=True)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("one", [True, False])
def test_float64_gradients_at_depth_100(one, scale):
    torch.manual_seed(0)
    net = calm(sequence(couplings(100 if one else 50, one=one, scale=scale)))
    expect_same(net, torch.randn(2, 4, 4, 4, dtype=DOUBLE), tolerance=1e-9)


@pytest.mark.parametrize("scale", SCALES)
def test_float32_drifts_a_little(scale):
    """Beside the rounding of ordinary autograd, at depth 100: what counts are the scales that
    occur, not their bound."""
    torch.manual_seed(0)
    net = calm(ReversibleSequence(couplings(50, scale=scale)))
    x = torch.randn(2, 4, 8, 8)
    results = []
    for net.save_memory in (True, False):
        results.append([t.clone() for t in gradients(net, x)])
    exact = gradients(net.double(), x.double())
    found, plain = (relative_errors(r, exact) for r in results)
    assert found < 1e-4
    assert found < 30 * plain


def test_logdet_is_that_of_the_jacobian():
    torch.manual_seed(0)
    net = sequence([*couplings(2), *couplings(3, one=True)])
    x = torch.randn(3, 4, 2, 3, dtype=DOUBLE)
    y, logdet = net(x, logdet=True)
    assert (logdet - jacobian_logdet(net, x)).abs().max() < 1e-10
    again, back = net.inverse(y, logdet=True)
    assert (again - x).abs().max() < 1e-12
    assert (back + logdet).abs().max() < 1e-12


@pytest.mark.parametrize("logdet", [False, True])
@pytest.mark.parametrize("one", [False, True])
def test_each_sub_network_is_evaluated_exactly_twice_a_step(one, logdet):
    net = ReversibleSequence([*couplings(2, one=one), *couplings(1, one=True)])
    first, again = [], []

    def count(module, args, output):
        (again if is_recomputing() else first).append(module)

    parts = [m for layer in net for m in (layer.f, layer.g) if m is not None]
    for part in parts:
        part.register_forward_hook(count)
    x = torch.randn(1, 4, 8, 8, requires_grad=True)
    if logdet:
        y, total = net(x, logdet=True)
        (y.sum() + total.sum()).backward()
    else:
        net(x).sum().backward()
    assert first == parts
    assert again == parts[::-1]


@pytest.mark.parametrize("one", [False, True])
def test_what_a_hook_keeps_is_not_written_into(one):
    torch.manual_seed(0)
    net, seen = sequence(couplings(3, one=one)), []
    for layer in net:
        for f in (layer.f, layer.g):
            if f is not None:
                f.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    y, logdet = net(torch.randn(2, 4, 3, 3, dtype=DOUBLE), logdet=True)
    (y.sum() + logdet.sum()).backward()
    half = len(seen) // 2
    for first, again in zip(seen[:half], reversed(seen[half:]), strict=True):
        assert (first - again).abs().max() < 1e-12


class LearnedFactor(AffineCoupling):
    """The log-scale of RealNVP, whose factor is learned; nothing is said of its derivative."""

    def __init__(self, *args):
        super().__init__(*args)
        self.factor = nn.Parameter(torch.tensor(0.7))

    def _log_scale(self, a):
        return self.factor * super()._log_scale(a)


class Soft(AffineCoupling):
    """Another bound, with its derivative."""

    def _log_scale(self, a):
        return self.clamp * a / (1 + a.abs())

    def _slope(self, a):
        return self.clamp / (1 + a.abs()).square()


@pytest.mark.parametrize(("kind", "nodes"), [(LearnedFactor, 1), (Soft, 2)])
def test_a_subclass_with_a_scale_of_its_own(kind, nodes):
    torch.manual_seed(0)
    net = sequence([kind(sub(2), sub(2)) for _ in range(3)])
    assert len(net[0].parts(net[0].forward)) == nodes
    expect_same(net, torch.randn(2, 4, 3, 3, dtype=DOUBLE))


class Half(AdditiveCoupling):
    """Adds half of the value, but says nothing of the step back."""

    def _coupled(self, stream, module, x, name, *args, **kwargs):
        return (stream + 0.5 * self.run(module, x, *args, **kwargs),)

    def _uncoupled(self, stream, module, x, name, *args, **kwargs):
        return (stream - 0.5 * self.run(module, x, *args, **kwargs),)


def test_a_subclass_with_a_sum_of_its_own():
    torch.manual_seed(0)
    net = sequence([Half(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)) for _ in range(3)])
    assert not net[0].is_exact and not net[0].preserves_volume
    x = torch.randn(2, 4, 3, 3, dtype=DOUBLE)
    grads = []
    for net.save_memory in (True, False):
        net.zero_grad()
        net(x).sin().sum().backward()
        grads.append([p.grad for p in net.parameters()])
    for a, b in zip(*grads, strict=True):
        assert (a - b).abs().max() < 1e-12


class Stateful(nn.Module):
    """Batch norm and dropout: the state that a repetition has to bring back."""

    def __init__(self, c):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c), nn.Tanh(), nn.Dropout(0.3)
        )
        self.last = nn.Conv2d(c, 2 * c, 1)

    def forward(self, x):
        return self.last(self.body(x))


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_and_dropout_inside(training):
    torch.manual_seed(0)
    net = sequence([AffineCoupling(Stateful(2), Stateful(2)) for _ in range(4)]).train(training)
    initial = {k: v.clone() for k, v in net.state_dict().items()}
    x = torch.randn(3, 4, 4, 4, dtype=DOUBLE)
    results = []
    for net.save_memory in (True, False):
        net.load_state_dict(initial)
        results.append([t.clone() for t in gradients(net, x)])
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() <= 1e-10 * (1 + b.abs().max())


class Conditional(nn.Module):
    """A sub-network that sees a condition, (N, 1, ...)."""

    def __init__(self, channels):
        super().__init__()
        self.body = sub(channels + 1, channels)

    def forward(self, x, condition, factor=1.0):
        return self.body(torch.cat((x, factor * condition), 1))


def test_a_condition_reaches_the_sub_networks_and_gets_its_gradient():
    torch.manual_seed(0)
    net = sequence([AffineCoupling(Conditional(2), Conditional(2)) for _ in range(3)])
    x, condition = torch.randn(2, 4, 3, 3, dtype=DOUBLE), torch.randn(2, 1, 3, 3, dtype=DOUBLE)
    expect_same(net, x, condition, factor=0.5)
    y, logdet = net(x, condition, factor=0.5, logdet=True)
    again, back = net.inverse(y, condition, factor=0.5, logdet=True)
    assert (again - x).abs().max() < 1e-12
    assert (back + logdet).abs().max() < 1e-12
    assert (net(x, 2 * condition, factor=0.25, logdet=True)[1] - logdet).abs().max() < 1e-12
    assert (net(x, condition, logdet=True)[1] - logdet).abs().max() > 1e-6


def test_a_shared_sub_network_and_frozen_parameters():
    torch.manual_seed(0)
    f, frozen = sub(2), sub(2).requires_grad_(False)
    net = sequence([AffineCoupling(f, f), AffineCoupling(frozen, f), AffineCoupling(f, frozen)])
    expect_same(net, torch.randn(2, 4, 3, 3, dtype=DOUBLE))
    assert frozen[0].weight.grad is None


@pytest.mark.parametrize("dim", [1, -1])
def test_tokens_are_split_along_their_last_axis(dim):
    torch.manual_seed(0)
    channels = 3 if dim == -1 else 4
    f = nn.Linear(3, 6) if dim == -1 else nn.Conv1d(2, 4, 1)
    net = sequence([AffineCoupling(f, dim=dim) for _ in range(3)], split_dim=dim)
    x = torch.randn(2, channels, 6, dtype=DOUBLE)
    expect_same(net, x)
    assert (net(x, logdet=True)[1] - jacobian_logdet(net, x)).abs().max() < 1e-12


def test_autocast_and_half_precision():
    torch.manual_seed(0)
    net = ReversibleSequence(couplings(3, channels=4))
    x = torch.randn(2, 8, 8, 8)

    def under_autocast():
        with torch.autocast("cpu", torch.bfloat16):
            y, logdet = net(x, logdet=True)
        assert y.dtype == logdet.dtype == torch.float32
        (y.square().mean() - logdet.mean() / 100).backward()
        return [p.grad.clone() for p in net.parameters()]

    results = []
    for net.save_memory in (True, False):
        net.zero_grad()
        results.append(under_autocast())
    for a, b in zip(*results, strict=True):
        assert (a - b).norm() <= 0.05 * b.norm()
    y, logdet = net.bfloat16()(x.bfloat16(), logdet=True)
    assert y.dtype == torch.bfloat16
    assert logdet.dtype == torch.float32  # a sum of so many numbers
    logdet.sum().backward()


def peak_without_weights(depth, one):
    """Bytes alive at the peak of a step, less parameters and gradients."""
    net = ReversibleSequence(couplings(depth, one=one, channels=16))
    x, dy = torch.randn(2, 2, 32, 32, 32).unbind()
    x.requires_grad_()

    def step():
        x.grad = None
        y, logdet = net(x, logdet=True)
        torch.autograd.backward((y, logdet), (dy, torch.ones(2)))

    report = measure(step, net)
    return report.peak - report.parameters - report.gradients


@pytest.mark.parametrize("one", [False, True])
def test_memory_grows_with_depth_by_weights_only_to_the_byte(one):
    assert len({peak_without_weights(depth, one) for depth in (2, 4, 12)}) == 1


def test_exact_arithmetic_stores_the_input_and_is_right():
    torch.manual_seed(0)
    net = sequence(couplings(3), arithmetic="exact", fraction_bits=20)
    expect_same(net, torch.randn(2, 4, 3, 3, dtype=DOUBLE), tolerance=1e-12)
    assert "input stored" in repr(net)
    assert "(AffineCoupling)" in repr(net)


class Widening(nn.Module):
    def forward(self, x):
        return torch.cat((x, x), 1).double()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (AffineCoupling(nn.Identity()), r"layer 0 \(AffineCoupling\).* f gave shape .*dim=1"),
        (AffineCoupling(sub(2), nn.Identity()), r"layer 0 .* g gave shape .*\(1, 4, 3, 3\)"),
        (AffineCoupling(Widening()), r"layer 0 \(AffineCoupling\).* f gave torch.float64"),
    ],
)
def test_a_sub_network_that_does_not_fit_is_refused(layer, message):
    with pytest.raises(ReversibleError, match=message):
        ReversibleSequence([layer])(torch.randn(1, 4, 3, 3))


@pytest.mark.parametrize("options", [{"scale": "softplus"}, {"clamp": 0}, {"clamp": float("inf")}])
def test_wrong_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        AffineCoupling(nn.Identity(), **options)
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        AffineCoupling(None)


@pytest.mark.parametrize("schedule", ["invert", "recompute", "store", ["store", "invert"]])
def test_channels_last_batch_of_one_with_instance_norm(schedule):
    """PyTorch's instance norm misreads a channels-last gradient: a product with a stream is one."""
    torch.manual_seed(0)
    subs = [nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.InstanceNorm2d(8)) for _ in "fg"]
    layers = [AffineCoupling(*subs), AffineCoupling(*copy.deepcopy(subs))]
    net = ReversibleSequence(layers, schedule=schedule).double()
    x = torch.randn(1, 8, 5, 5).double()
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        leaf = x.clone(memory_format=layout).requires_grad_()
        net(leaf, logdet=True)[1].sum().backward()
        found.append(leaf.grad)
    assert torch.allclose(*found, rtol=1e-8, atol=1e-10)
