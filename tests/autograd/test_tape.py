"""What the tape promises: one evaluation, no stored activation, exact gradients, nothing held."""

import gc

import pytest
import torch
from torch import nn

from revgrad import (
    AdditiveCoupling,
    HaarDownsample,
    HaarUpsample,
    JoinSkip,
    ReversibleSequence,
    SplitSkip,
    Tap,
    is_recomputing,
)
from revgrad.memory import live_bytes, measure


def branch(channels):
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.InstanceNorm2d(channels, affine=True),
        nn.LeakyReLU(0.01),
    )


def smooth(channels):
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.InstanceNorm2d(channels, affine=True),
        nn.SiLU(),
    )


def gradients(net, x):
    net.zero_grad()
    x = x.clone().requires_grad_()
    y = net(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return [y.detach(), x.grad, *(p.grad.clone() for p in net.parameters())]


@pytest.mark.parametrize("two", [False, True])
def test_float64_gradients_at_depth_100(two):
    torch.manual_seed(0)
    layers = [AdditiveCoupling(smooth(4), smooth(4) if two else None) for _ in range(100)]
    net = ReversibleSequence(layers).double()
    x = torch.randn(2, 8, 8, 8, dtype=torch.float64)
    found = gradients(net, x)
    net.save_memory = False
    for a, b in zip(gradients(net, x), found, strict=True):
        assert (a - b).norm() <= 1e-10 * a.norm()


@pytest.mark.parametrize("two", [False, True])
def test_each_sub_network_is_evaluated_exactly_twice_a_step(two):
    net = ReversibleSequence([AdditiveCoupling(branch(4), branch(4) if two else None)] * 1)
    net.layers.append(AdditiveCoupling(branch(4)))
    first, again = [], []

    def count(module, args, output):
        (again if is_recomputing() else first).append(module)

    parts = [m for layer in net for m in (layer.f, layer.g) if m is not None]
    for part in parts:
        part.register_forward_hook(count)
    net(torch.randn(1, 8, 8, 8, requires_grad=True)).sum().backward()
    assert first == parts
    assert again == parts[::-1]


def peak_without_weights(depth, two, memory_format):
    """Bytes alive at the peak of a step, less parameters and gradients."""
    if two:
        layers = [AdditiveCoupling(branch(32), branch(32)) for _ in range(depth // 2)]
    else:
        layers = [AdditiveCoupling(branch(32)) for _ in range(depth)]
    net = ReversibleSequence(layers).to(memory_format=memory_format)
    x = torch.randn(1, 64, 32, 32).contiguous(memory_format=memory_format).requires_grad_()
    dy = torch.randn(1, 64, 32, 32).contiguous(memory_format=memory_format)

    def step():
        x.grad = None
        net(x).backward(dy)

    report = measure(step, net)
    return report.peak - report.parameters - report.gradients


@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize(
    ("memory_format", "limit"), [(torch.contiguous_format, 7.6), (torch.channels_last, 7.1)]
)
def test_memory_grows_with_depth_by_weights_only_to_the_byte(two, memory_format, limit):
    activation = 64 * 32 * 32 * 4
    peaks = {peak_without_weights(depth, two, memory_format) for depth in (4, 8, 24)}
    assert len(peaks) == 1
    assert peaks.pop() <= limit * activation


def test_nothing_is_stored_but_the_output_and_the_weights():
    net = ReversibleSequence([AdditiveCoupling(branch(4), branch(4)) for _ in range(5)])
    weights = {p.data_ptr() for p in net.parameters()}
    stored = []

    def pack(tensor):
        stored.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = net(torch.randn(2, 8, 8, 8))
    activations = [t for t in stored if t.data_ptr() not in weights]
    assert [t.data_ptr() for t in activations] == [y.data_ptr()]


def test_bytes_alive_stay_the_same_over_1000_steps():
    net = ReversibleSequence([AdditiveCoupling(nn.Conv2d(2, 2, 1)) for _ in range(3)])
    x = torch.randn(1, 4, 4, 4)
    middle = net[1].f.weight

    def step(i):
        y = net(x)
        if i % 3 == 1:
            y.sum().backward()
            net.zero_grad()
        elif i % 3 == 2:  # a backward pass through a part of the graph
            torch.autograd.grad(y.sum(), middle)

    def alive():
        gc.collect()
        return live_bytes()

    for i in range(6):
        step(i)
    before = alive()
    for i in range(1000):
        step(i)
    assert alive() == before


def test_a_partial_backward_pass_leaves_nothing_on_the_tape():
    net = ReversibleSequence([AdditiveCoupling(nn.Conv2d(2, 2, 1)) for _ in range(3)])
    total = net(torch.randn(1, 4, 4, 4, requires_grad=True)).sum()
    gc.collect()
    before = live_bytes()
    for _ in range(3):
        torch.autograd.grad(total, net[1].f.weight, retain_graph=True)
    gc.collect()
    assert live_bytes() == before


def test_a_second_backward_pass_sees_the_buffers_of_the_forward_pass():
    """The recomputation writes into copies of copies: a repetition can be repeated."""

    class Drifting(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 1)
            self.register_buffer("scale", torch.ones(()))

        def forward(self, x):
            y = self.conv(x) * self.scale.clone()
            self.scale.mul_(2)
            return y

    net = ReversibleSequence([AdditiveCoupling(Drifting()) for _ in range(2)])
    total = net(torch.randn(1, 4, 4, 4)).pow(2).sum()
    first = torch.autograd.grad(total, net.parameters(), retain_graph=True)
    second = torch.autograd.grad(total, net.parameters())
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert [layer.f.scale.item() for layer in net] == [2, 2]


def unet(save_memory=True):
    torch.manual_seed(0)
    return ReversibleSequence(
        [
            AdditiveCoupling(smooth(4), smooth(4)),
            Tap("fine"),
            SplitSkip(),
            HaarDownsample(2),
            AdditiveCoupling(smooth(8)),
            Tap("coarse", nn.Conv2d(16, 3, 1)),
            AdditiveCoupling(smooth(8)),
            HaarUpsample(2),
            JoinSkip(),
            AdditiveCoupling(smooth(4)),
        ],
        save_memory=save_memory,
    ).double()


USES = {
    "all": lambda y, taps: y.sin().sum() + taps["fine"].cos().sum() + taps["coarse"].sin().sum(),
    "output": lambda y, taps: y.sin().sum(),
    "tap": lambda y, taps: taps["fine"].sin().sum(),
    "head": lambda y, taps: taps["coarse"].sin().sum(),
}


@pytest.mark.parametrize("use", USES)
def test_taps(use):
    """A tapped value has its gradient, also alone; what lies behind it then has none."""
    x = torch.randn(2, 8, 8, 8, dtype=torch.float64)
    results = []
    for save_memory in (False, True):
        net = unet(save_memory)
        leaf = x.clone().requires_grad_()
        y, taps = net(leaf)
        assert list(taps) == ["fine", "coarse"]
        USES[use](y, taps).backward()
        results.append([leaf.grad, *(p.grad for p in net.parameters())])
    for a, b in zip(*results, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a - b).abs().max() <= 1e-10 * max(a.abs().max(), 1)


def test_taps_one_loss_after_the_other():
    x = torch.randn(2, 8, 8, 8, dtype=torch.float64)
    net = unet()
    y, taps = net(x)
    for i, loss in enumerate((taps["coarse"].sin().sum(), taps["fine"].sum(), y.cos().sum())):
        loss.backward(retain_graph=i < 2)
    found = [p.grad.clone() for p in net.parameters()]
    plain = unet(save_memory=False)
    y, taps = plain(x)
    (taps["coarse"].sin().sum() + taps["fine"].sum() + y.cos().sum()).backward()
    for p, grad in zip(plain.parameters(), found, strict=True):
        assert (p.grad - grad).norm() <= 1e-10 * max(p.grad.norm(), 1)


def test_a_head_in_a_tap_stores_nothing():
    net = unet()
    weights = {p.data_ptr() for p in net.parameters()}
    stored = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: stored.append(t) or t, lambda t: t):
        y, taps = net(torch.randn(2, 8, 8, 8, dtype=torch.float64))
    activations = {t.data_ptr() for t in stored} - weights
    assert activations == {y.data_ptr(), taps["fine"].data_ptr()}


def test_anchors_bound_the_drift():
    """Without normalisation float32 is garbage at depth 60, unless the tape starts anew."""
    torch.manual_seed(0)
    layers = [
        AdditiveCoupling(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.SiLU())) for _ in range(60)
    ]
    for layer in layers:
        nn.init.kaiming_normal_(layer.f[0].weight, nonlinearity="relu")
    x = torch.randn(1, 8, 8, 8)
    errors = {}
    for every in (None, 20, 5):
        net = ReversibleSequence(layers, anchor_every=every)
        found = gradients(net, x)[1]
        net.save_memory = False
        expected = gradients(net, x)[1]
        errors[every] = ((found - expected).norm() / expected.norm()).item()
    assert errors[None] > 1e-3
    assert errors[20] < errors[None] / 10
    assert errors[5] < 1e-4


def test_anchors_store_every_nth_output():
    net = ReversibleSequence(
        [AdditiveCoupling(nn.Identity(), nn.Identity()) for _ in range(7)], anchor_every=3
    )
    stored = []
    x = torch.randn(2, 8, 8, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: stored.append(t) or t, lambda t: t):
        net(x)
    assert len(stored) == 2 * 2 + 1  # two anchors of two streams, and the output


def as_function(net):
    """The network as a function of its input and parameters, for gradcheck."""
    names = [n for n, _ in net.named_parameters()]

    def run(x, *parameters):
        return torch.func.functional_call(net, dict(zip(names, parameters, strict=True)), (x,))

    return run, [p.detach().requires_grad_() for p in net.parameters()]


def test_gradcheck_and_gradgradcheck():
    torch.manual_seed(0)

    def sub():
        return nn.Sequential(nn.Conv1d(1, 1, 3, padding=1), nn.Tanh())

    net = ReversibleSequence([AdditiveCoupling(sub(), sub()), AdditiveCoupling(sub())]).double()
    run, parameters = as_function(net)
    x = torch.randn(1, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, *parameters))
    assert torch.autograd.gradgradcheck(run, (x, *parameters))


@pytest.mark.parametrize("head", [None, nn.Conv1d(2, 1, 1).double()], ids=["value", "head"])
def test_gradcheck_of_taps(head):
    torch.manual_seed(0)
    sub = nn.Sequential(nn.Conv1d(1, 1, 3, padding=1), nn.Tanh())
    layers = [AdditiveCoupling(sub), Tap("a", head), AdditiveCoupling(sub)]
    net = ReversibleSequence(layers).double()
    run, parameters = as_function(net)

    def outputs(x, *parameters):
        y, taps = run(x, *parameters)
        return y, taps["a"]

    x = torch.randn(1, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(outputs, (x, *parameters))
    assert torch.autograd.gradgradcheck(outputs, (x, *parameters))


@pytest.mark.slow
def test_compiled_sub_networks():
    """What the README advises: an eager sequence of compiled sub-networks, by the real compiler."""
    torch.manual_seed(0)
    net = ReversibleSequence([AdditiveCoupling(smooth(4), smooth(4)) for _ in range(2)]).double()
    x = torch.randn(1, 8, 8, 8, dtype=torch.float64)
    net.save_memory = False
    expected = gradients(net, x)
    net.save_memory = True
    net.compile_sub_networks()
    for a, b in zip(expected, gradients(net, x), strict=True):
        assert (a - b).norm() <= 1e-9 * max(a.norm(), 1)


def test_incoming_gradients_are_not_written_into():
    net = ReversibleSequence([AdditiveCoupling(nn.Identity(), nn.Identity()) for _ in range(3)])
    x = torch.randn(1, 4, 4, 4, requires_grad=True)
    dy = torch.randn(1, 4, 4, 4)
    before = dy.clone()
    net(x).backward(dy)
    assert torch.equal(dy, before)


def test_streams_given_as_a_tuple_may_share_memory_with_the_output():
    """The first coupling passes a stream on as it is: the caller's tensor stays untouched."""
    net = ReversibleSequence([AdditiveCoupling(nn.Tanh())])
    x1, x2 = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    before = x1.detach().clone(), x2.detach().clone()
    y1, y2 = net((x1, x2))
    (y1 * 2 + y2).sum().backward()
    assert torch.equal(x1.detach(), before[0])
    assert torch.equal(x2.detach(), before[1])
    assert torch.equal(x1.grad, torch.ones(2, 3))
    assert torch.allclose(x2.grad, 2 + 1 - x2.detach().tanh() ** 2)


def test_the_module_keeps_nothing_of_a_step():
    net = ReversibleSequence([AdditiveCoupling(branch(2))])
    before = set(net.__dict__)
    net(torch.randn(1, 4, 4, 4)).sum().backward()
    assert set(net.__dict__) == before
    assert net.layers[0].__dict__.keys() == AdditiveCoupling(branch(2)).__dict__.keys()
