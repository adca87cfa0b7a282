"""Sequences under torch.compile: right gradients, the memory saved, or a clear word."""

import copy
import random

import pytest
import torch
import torch._dynamo
from torch import nn
from torch._dynamo.exc import Unsupported
from torch._dynamo.utils import counters

from revgrad import (
    AdditiveCoupling,
    ChannelMixing,
    HaarDownsample,
    HaarUpsample,
    JoinSkip,
    OrthogonalDownsample,
    OrthogonalUpsample,
    PixelShuffleDownsample,
    PixelShuffleUpsample,
    ReversibleLayer,
    ReversibleSequence,
    SplitSkip,
    Tap,
)
from revgrad.nn import NormAct, fuse

pytestmark = pytest.mark.compiler


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()


def branch(channels, *more):
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.InstanceNorm2d(channels, affine=True),
        nn.SiLU(),
        *more,
    )


class Network(nn.Module):
    """A sequence in the middle of a network."""

    def __init__(self, *layers, channels=8, **options):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 1)
        self.sequence = ReversibleSequence(layers, **options)
        self.last = nn.Conv2d(channels, channels, 1)

    def forward(self, x, *args, **kwargs):
        found = self.sequence(self.first(x), *args, **kwargs)
        y, taps = found if isinstance(found, tuple) else (found, {})
        total = self.last(y.sin())
        return (total, *taps.values())


def drawn(shape=(2, 8, 8, 8), dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(3))


def gradients(net, call, x, *side, seed=5):
    """Outputs, and the gradients of the input, side inputs and parameters."""
    net.zero_grad()
    inputs = [t.detach().clone(memory_format=torch.preserve_format) for t in (x, *side)]
    for t in inputs:
        t.requires_grad_(t.is_floating_point())
    torch.manual_seed(seed)
    random.seed(seed)
    outputs = call(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    weights = (torch.linspace(1, 2, y.numel(), dtype=y.dtype).view(y.shape) for y in outputs)
    sum((y.sin() * w).sum() for y, w in zip(outputs, weights, strict=True)).backward()
    grads = [t.grad for t in (*inputs, *net.parameters())]
    return [*(y.detach() for y in outputs), *(g if g is None else g.clone() for g in grads)]


def plain(net, x, *side):
    """The same by ordinary autograd, without compiler."""
    twin = copy.deepcopy(net)
    for module in twin.modules():
        if isinstance(module, ReversibleSequence):
            module.save_memory = False
    return gradients(twin, twin, x, *side)


def expect_equal(found, expected, tolerance=1e-10):
    for a, b in zip(expected, found, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a - b).abs().max() <= tolerance * (1 + a.abs().max())


def stored(net, x, **options):
    """Bytes of activations that the compiled network keeps for its backward pass.

    Beside them the compiler keeps weights in other layouts, and numbers for each channel.
    """
    y = torch.compile(net, fullgraph=True, **options)(x.clone().requires_grad_())
    weights = {p.data_ptr() for p in net.parameters()}
    storages = {
        t.data_ptr(): t.untyped_storage()
        for t in y.grad_fn.saved_tensors
        if t.shape[2:] == x.shape[2:]
    }
    return sum(s.nbytes() for at, s in storages.items() if at not in weights)


FORMS = {
    "two": [lambda: AdditiveCoupling(branch(4), branch(4))],
    "one": [lambda: AdditiveCoupling(branch(4)), lambda: AdditiveCoupling(branch(4))],
    "fixed": [
        lambda: AdditiveCoupling(branch(4)),
        lambda: HaarDownsample(2),
        lambda: AdditiveCoupling(branch(16)),
        lambda: HaarUpsample(2),
        lambda: PixelShuffleDownsample(2),
        lambda: PixelShuffleUpsample(2),
    ],
    "learned": [
        lambda: ChannelMixing(8, init="random"),
        lambda: OrthogonalDownsample(8, 2, init="random"),
        lambda: AdditiveCoupling(branch(16)),
        lambda: OrthogonalUpsample(8, 2, init="random"),
    ],
    "skips": [
        lambda: SplitSkip(),
        lambda: HaarDownsample(2),
        lambda: AdditiveCoupling(branch(8), branch(8)),
        lambda: HaarUpsample(2),
        lambda: JoinSkip(),
        lambda: AdditiveCoupling(branch(4)),
    ],
    "taps": [
        lambda: AdditiveCoupling(branch(4)),
        lambda: Tap("a"),
        lambda: AdditiveCoupling(branch(4)),
        lambda: Tap("b", nn.Conv2d(8, 3, 1)),
        lambda: AdditiveCoupling(branch(4)),
    ],
    "nested": [
        lambda: AdditiveCoupling(branch(4)),
        lambda: ReversibleSequence([AdditiveCoupling(branch(4))]),
    ],
}


class Inner(nn.Module):
    """A sequence inside a sub-network."""

    def __init__(self):
        super().__init__()
        self.sequence = ReversibleSequence(
            [AdditiveCoupling(nn.Sequential(nn.Linear(4, 4)))], split_dim=-1
        )

    def forward(self, x):
        return self.sequence(x)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("channels_last", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_one_graph_has_the_gradients_of_plain_autograd(form, channels_last):
    torch.manual_seed(0)
    net = Network(*(make() for make in FORMS[form])).double()
    x = drawn()
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    expect_equal(gradients(net, compiled, x), plain(net, x))
    assert counters["stats"]["unique_graphs"] == 1


def test_a_batch_of_one_in_channels_last_in_one_graph():
    """PyTorch's instance norm misreads such gradients, also in plain autograd."""
    torch.manual_seed(0)
    net = ReversibleSequence([AdditiveCoupling(branch(4)) for _ in range(2)]).double()
    x = drawn((1, 8, 8, 8))
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    found = gradients(net, compiled, x.contiguous(memory_format=torch.channels_last))
    expect_equal(found, plain(net, x))


NORM_ACTS = {
    "instance": lambda: NormAct(4, "instance", "leaky_relu", affine=True),
    "group": lambda: NormAct(4, "group", "silu", groups=2),
    "layer": lambda: NormAct((4, 8, 8), "layer", "gelu"),
    "batch": lambda: NormAct(4, "batch", "relu", track_running_stats=False),
    "batch, in evaluation": lambda: NormAct(4, "batch", "relu").eval(),
}


@pytest.mark.parametrize("name", NORM_ACTS)
def test_fused_operators_in_one_graph(name):
    """Gradients arrive in other strides than the compiler supposes when it traces."""

    torch.manual_seed(0)
    norm = NORM_ACTS[name]()
    for p in norm.parameters():
        nn.init.normal_(p)
    net = Network(AdditiveCoupling(nn.Sequential(nn.Conv2d(4, 4, 1), norm))).double()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    x = drawn()
    if name == "group":
        x = drawn((1, 8, 8, 8)).to(memory_format=torch.channels_last)
    expect_equal(gradients(net, compiled, x), plain(net, x), 2e-14)


@pytest.mark.slow
def test_fused_operators_in_one_graph_with_the_default_compiler():
    torch.manual_seed(0)
    net = Network(AdditiveCoupling(nn.Sequential(nn.Conv2d(4, 4, 1), NormAct(4)))).double()
    compiled = torch.compile(net, fullgraph=True)
    expect_equal(gradients(net, compiled, drawn()), plain(net, drawn()), 2e-14)


def test_one_graph_keeps_the_saving():
    """What is kept for the backward pass does not grow with depth, but by the weights."""
    x = drawn()

    def kept(depth, save_memory):
        torch._dynamo.reset()
        layers = [AdditiveCoupling(branch(4), branch(4)) for _ in range(depth)]
        net = ReversibleSequence(layers, save_memory=save_memory).double()
        return stored(net, x, backend="aot_eager")

    assert kept(4, True) == kept(2, True) <= 3 * x.nbytes
    assert kept(4, False) > kept(2, False) + 2 * x.nbytes


def test_side_inputs_in_one_graph():
    class Sided(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = branch(4)

        def forward(self, x, a, *, pair, factor, index):
            return self.body(x) * a.sum() * factor + pair[0][index].mean() + pair[1].mean()

    torch.manual_seed(0)
    net = Network(AdditiveCoupling(Sided(), Sided()), AdditiveCoupling(Sided())).double()
    index = torch.tensor([0, 1])

    def run(call):
        return lambda x, a, b: call(x, a, pair=[b, (b * 2)], factor=0.3, index=index)

    a, b = drawn((3,)), drawn((2, 2))
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    twin = copy.deepcopy(net)
    twin.sequence.save_memory = False
    expected = gradients(twin, run(twin), drawn(), a, b)
    expect_equal(gradients(net, run(compiled), drawn(), a, b), expected)


def test_frozen_parameters_in_one_graph():
    torch.manual_seed(0)
    net = Network(AdditiveCoupling(branch(4), branch(4))).double()
    net.sequence[0].g[0].weight.requires_grad_(False)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    expect_equal(gradients(net, compiled, drawn()), plain(net, drawn()))


def test_streams_as_a_tuple_and_another_axis_in_one_graph():
    torch.manual_seed(0)
    net = ReversibleSequence([AdditiveCoupling(nn.Linear(4, 4))]).double()
    a, b = drawn((2, 4)), drawn((2, 4)) * 2

    def run(call):
        return lambda a, b: call((a, b))

    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    twin = ReversibleSequence([net[0]], save_memory=False)
    expected = gradients(twin, run(twin), a, b)
    expect_equal(gradients(net, run(compiled), a, b), expected)
    last = ReversibleSequence([AdditiveCoupling(nn.Linear(4, 4))], split_dim=-1).double()
    compiled = torch.compile(last, fullgraph=True, backend="aot_eager")
    expect_equal(gradients(last, compiled, drawn((2, 3, 8))), plain(last, drawn((2, 3, 8))))


def test_autocast_in_one_graph():
    """The repetition runs under the forward pass's autocast, though backward does not."""
    torch.manual_seed(0)
    net = Network(*(AdditiveCoupling(branch(4), branch(4)) for _ in range(3)))
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    x = drawn(dtype=torch.float32)

    def run(call):
        def under(x):
            with torch.autocast("cpu", torch.bfloat16):
                return call(x)

        return under

    eager, found = gradients(net, run(net), x), gradients(net, run(compiled), x)
    assert (eager[0] - plain(net, x)[0]).norm() > 0
    for a, b in zip(eager, found, strict=True):
        assert (a.float() - b.float()).norm() <= 2e-3 * (1e-3 + a.float().norm())


def test_parameters_by_functional_call_in_one_graph():
    torch.manual_seed(0)
    net = Network(AdditiveCoupling(branch(4)), AdditiveCoupling(branch(4))).double()
    others = {n: (p * 1.5).detach().requires_grad_() for n, p in net.named_parameters()}

    def run(x, others):
        return torch.func.functional_call(net, others, (x,))[0]

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(drawn(), others).sin().sum(), list(others.values()))
    net.sequence.save_memory = False
    expected = torch.autograd.grad(run(drawn(), others).sin().sum(), list(others.values()))
    expect_equal(found, expected)


def test_other_shapes_compile_a_fixed_number_of_times():
    torch.manual_seed(0)
    net = Network(AdditiveCoupling(branch(4)), HaarDownsample(2), HaarUpsample(2)).double()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for size in (8, 12, 16, 8):
        x = drawn((2, 8, size, size))
        expect_equal(gradients(net, compiled, x), plain(net, x))
    assert counters["stats"]["unique_graphs"] == 2  # for one shape, then for all


def test_without_gradients_the_layers_are_traced_as_they_are():
    torch.manual_seed(0)
    net = Network(AdditiveCoupling(branch(4, nn.Dropout(0.5)))).double()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.manual_seed(1)
        expected = net(drawn())
        torch.manual_seed(1)
        expect_equal(compiled(drawn()), expected)
    net.sequence.save_memory = False
    expect_equal(gradients(net, compiled, drawn()), plain(net, drawn()))


def test_inverse_in_one_graph():
    net = ReversibleSequence([AdditiveCoupling(branch(4)), HaarDownsample(2)]).double()
    with torch.no_grad():
        x = drawn()
        inverse = torch.compile(net.inverse, fullgraph=True, backend="aot_eager")
        expect_equal([inverse(net(x))], [x])


def test_weights_changed_before_backward_are_noticed():
    net = Network(AdditiveCoupling(branch(4))).double()
    net.sequence[0].f[0].weight.requires_grad_(False)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    y = compiled(drawn())[0].sum()
    with torch.no_grad():
        net.sequence[0].f[0].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


# --- what is refused in one graph, and right with a break ----------------------------------------


class Custom(nn.Module):
    """A sub-network that does something besides its convolution."""

    def __init__(self, extra):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.extra = extra
        self.register_buffer("count", torch.ones((), dtype=torch.float64))

    def forward(self, x):
        return self.extra(self, self.conv(x))


def write_buffer(self, y):
    y = y * self.count.clone()
    self.count.mul_(1.5)
    return y


class OnlyInverse(ReversibleLayer):
    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x1, x2):
        return x1 + self.run(self.f, x2), x2

    def inverse(self, y1, y2):
        return y1 - self.run(self.f, y2), y2


def hooked():
    layer = AdditiveCoupling(branch(4))
    layer.f.register_forward_hook(lambda m, a, y: y * 2)
    return layer


REFUSED = {
    "dropout": (lambda: AdditiveCoupling(branch(4, nn.Dropout(0.5))), "draws random numbers"),
    "functional dropout": (
        lambda: AdditiveCoupling(Custom(lambda _, y: nn.functional.dropout(y, 0.5))),
        "draws random numbers",
    ),
    "noise": (lambda: AdditiveCoupling(Custom(lambda _, y: y * torch.rand(1))), "draws random"),
    "python": (lambda: AdditiveCoupling(Custom(lambda _, y: y * random.random())), "random"),
    "batch norm": (lambda: AdditiveCoupling(branch(4, nn.BatchNorm2d(4))), "in place"),
    "buffer": (lambda: AdditiveCoupling(Custom(write_buffer)), "in place"),
    "no backward_step": (lambda: OnlyInverse(branch(4)), "backward_step"),
    "hook": (hooked, "has hooks"),
    "tied": (lambda: AdditiveCoupling(*[branch(4)] * 2), "parameter in two places"),
    "fused": (lambda: AdditiveCoupling(nn.Sequential(NormAct(4, "batch"))), "in place"),
    "sequence inside": (lambda: AdditiveCoupling(Inner()), "sequence inside a sub-network"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_one_graph_cannot_do_is_refused_by_name(name):
    make, reason = REFUSED[name]
    torch.manual_seed(0)
    net = Network(AdditiveCoupling(branch(4)), make()).double()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    # Python's random is refused by the compiler itself, in its own words.
    advice = "" if name == "python" else ".*compile_sub_networks"
    with pytest.raises(Unsupported, match=reason + advice):
        compiled(drawn())


@pytest.mark.parametrize("name", REFUSED)
def test_what_one_graph_cannot_do_is_right_with_a_break(name):
    torch.manual_seed(0)
    net = Network(AdditiveCoupling(branch(4)), REFUSED[name][0]()).double()
    expected, buffers = plain(net, drawn()), [b.clone() for b in net.buffers()]
    compiled = torch.compile(net, backend="aot_eager")
    expect_equal(gradients(net, compiled, drawn()), expected)
    assert sum(counters["graph_break"].values()) <= 2  # the network's frame and the sequence's
    graphs = counters["stats"]["unique_graphs"]
    assert graphs == 2  # before and after the sequence
    # A second step draws and counts anew, and compiles nothing.
    gradients(net, compiled, drawn())
    assert counters["stats"]["unique_graphs"] == graphs
    assert len(buffers) == len(list(net.buffers()))


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"arithmetic": "exact"}, 'arithmetic="exact"'), ({"anchor_every": 1}, "anchor_every")],
)
def test_options_that_are_not_traced(options, reason):
    torch.manual_seed(0)
    net = Network(AdditiveCoupling(branch(4)), AdditiveCoupling(branch(4)), **options).double()
    with pytest.raises(Unsupported, match=reason):
        torch.compile(net, fullgraph=True, backend="eager")(drawn())
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(net, backend="aot_eager")
    expect_equal(gradients(net, compiled, drawn()), plain(net, drawn()))
    assert sum(counters["graph_break"].values()) <= 2


def test_a_captured_tensor_is_refused_in_one_graph_and_with_a_break():
    outside = torch.randn(1, dtype=torch.float64, requires_grad=True)
    net = Network(AdditiveCoupling(Custom(lambda _, y: y * outside))).double()
    with pytest.raises(Unsupported, match="its gradient would be lost"):
        torch.compile(net, fullgraph=True, backend="eager")(drawn())
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager")
    with pytest.raises(RuntimeError, match="its gradient would be lost"):
        compiled(drawn())[0].sum().backward()


def test_a_sub_network_that_writes_into_its_input_is_refused():
    net = Network(
        AdditiveCoupling(nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1)))
    ).double()
    with pytest.raises(Unsupported, match="in place"):
        torch.compile(net, fullgraph=True, backend="eager")(drawn())
    torch._dynamo.reset()
    with pytest.raises(RuntimeError, match="changed its input in place"):
        torch.compile(net, backend="eager")(drawn())


def test_a_sub_network_that_breaks_the_graph_runs_on_the_tape():
    """What the compiler can't follow must not end half traced: dropout would be drawn anew."""

    def breaking(_, y):
        torch._dynamo.graph_break()
        return nn.functional.dropout(y, 0.5)

    torch.manual_seed(0)
    net = Network(AdditiveCoupling(Custom(breaking)), AdditiveCoupling(branch(4))).double()
    compiled = torch.compile(net, backend="aot_eager")
    expect_equal(gradients(net, compiled, drawn()), plain(net, drawn()))
    alone = net.sequence
    torch._dynamo.reset()
    compiled = torch.compile(alone, backend="aot_eager")
    expect_equal(gradients(alone, compiled, drawn()), plain(alone, drawn()))


def test_a_whole_step_compiled_with_backward_inside():
    """backward breaks the graph; the tape's own frames stay out of the compiler's hands."""
    torch.manual_seed(0)
    net = Network(
        AdditiveCoupling(branch(4, nn.Dropout(0.5))), AdditiveCoupling(branch(4))
    ).double()
    expected = plain(net, drawn())

    @torch.compile(backend="aot_eager")
    def step(x):
        y = net(x)[0]
        (y.sin() * torch.linspace(1, 2, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
        return y

    torch.manual_seed(5)
    x = drawn().requires_grad_()
    y = step(x)
    expect_equal([y.detach(), x.grad, *(p.grad for p in net.parameters())], expected)


# --- compiled sub-networks ------------------------------------------------------------------------


def test_compiled_sub_networks_on_the_tape():
    """Dropout and batch norm inside, kinds shared, nothing compiled after the first step."""
    torch.manual_seed(0)
    layers = [AdditiveCoupling(branch(4, nn.BatchNorm2d(4), nn.Dropout(0.4))) for _ in range(3)]
    net = Network(*layers, AdditiveCoupling(branch(4), branch(4))).double()
    twin = copy.deepcopy(net)
    expected = plain(net, drawn())
    keys = list(net.state_dict())
    net.sequence.compile_sub_networks(backend="aot_eager")
    assert list(net.state_dict()) == keys
    expect_equal(gradients(net, net, drawn()), expected)
    gradients(twin, twin, drawn())
    for a, b in zip(net.buffers(), twin.buffers(), strict=True):
        assert torch.equal(a, b)
    graphs = counters["stats"]["unique_graphs"]
    assert 2 <= graphs <= 6  # far fewer than sub-networks times passes
    for _ in range(3):
        gradients(net, net, drawn())
    assert counters["stats"]["unique_graphs"] == graphs


def test_compiled_sub_networks_of_other_shapes_and_widths_stay_compiled():
    torch.manual_seed(0)
    layers = [AdditiveCoupling(nn.Sequential(nn.Conv2d(4, 4, 1), nn.SiLU()))]
    for level in range(1, 5):
        conv = nn.Conv2d(4 * 4**level, 4 * 4**level, 1)
        layers += [PixelShuffleDownsample(2), AdditiveCoupling(nn.Sequential(conv, nn.SiLU()))]
    net = ReversibleSequence(layers).double().compile_sub_networks(backend="aot_eager")
    x = drawn((1, 8, 16, 16))
    expect_equal(gradients(net, net, x), plain(net, x))
    assert counters["frames"]["ok"] == counters["frames"]["total"]  # no limit reached


def test_compiled_sub_networks_inside_a_compiled_network_stay_compiled():
    torch.manual_seed(0)
    net = Network(
        AdditiveCoupling(branch(4, nn.Dropout(0.3))), AdditiveCoupling(branch(4))
    ).double()
    expected = plain(net, drawn())
    net.sequence.compile_sub_networks(backend="aot_eager")
    compiled = torch.compile(net, backend="aot_eager")
    expect_equal(gradients(net, compiled, drawn()), expected)
    assert counters["stats"]["unique_graphs"] > 2


def test_compiled_sub_networks_that_end_in_a_fused_operator():
    torch.manual_seed(0)
    net = Network(AdditiveCoupling(branch(4), branch(4))).double()
    expected = plain(net, drawn())
    fuse(net)
    net.sequence.compile_sub_networks(backend="aot_eager")
    expect_equal(gradients(net, net, drawn()), expected)
    assert counters["stats"]["unique_graphs"] == 2


@pytest.mark.parametrize("fraction_bits", [16, 20])
def test_compiled_sub_networks_in_exact_arithmetic(fraction_bits):
    torch.manual_seed(0)
    options = {"arithmetic": "exact", "fraction_bits": fraction_bits}
    net = Network(AdditiveCoupling(branch(4)), AdditiveCoupling(branch(4)), **options).double()
    expected = plain(net, drawn())
    net.sequence.compile_sub_networks(backend="aot_eager")
    expect_equal(gradients(net, net, drawn()), expected, 1e-5)


def test_a_repetition_that_draws_other_numbers_is_an_error():
    """As a compiled sub-network would that runs uncompiled the second time."""

    def unlike(_, y):
        return nn.functional.dropout(y, 0.5) if torch.is_grad_enabled() else y * torch.rand(1)

    net = Network(AdditiveCoupling(Custom(unlike))).double()
    y = net(drawn())[0]
    with pytest.raises(RuntimeError, match=r"layer 0 .* drew other random numbers"):
        y.sum().backward()


# --- the real compiler ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("form", ["two", "learned", "skips"])
def test_inductor_in_one_graph(form):
    torch.manual_seed(0)
    net = Network(*(make() for make in FORMS[form])).double()
    compiled = torch.compile(net, fullgraph=True)
    expect_equal(gradients(net, compiled, drawn()), plain(net, drawn()))


@pytest.mark.slow
def test_inductor_keeps_the_saving():
    x = drawn()
    found = {}
    for depth in (3, 8):
        torch._dynamo.reset()
        net = ReversibleSequence([AdditiveCoupling(branch(4), branch(4)) for _ in range(depth)])
        found[depth] = stored(net.double(), x)
    assert found[8] == found[3] <= 3 * x.nbytes


@pytest.mark.slow
def test_inductor_draws_the_same_dropout_twice():
    """Its random numbers are others than eager's, so both are compiled here."""
    torch.manual_seed(0)
    more = nn.Dropout(0.5), nn.Conv2d(4, 4, 1), nn.Dropout(0.3)
    net = Network(AdditiveCoupling(branch(4, *more), branch(4, *more))).double()
    net.sequence.compile_sub_networks()
    net.sequence.save_memory = False
    expected = gradients(net, net, drawn())
    net.sequence.save_memory = True
    expect_equal(gradients(net, net, drawn()), expected)
