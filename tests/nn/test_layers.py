"""Each reversible layer by itself and in a sequence: inverse, gradient, errors that name it."""

import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import revgrad
from revgrad import (
    AdditiveCoupling,
    HaarDownsample,
    HaarUpsample,
    JoinSkip,
    PixelShuffleDownsample,
    PixelShuffleUpsample,
    ReversibleError,
    ReversibleLayer,
    ReversibleSequence,
    SplitSkip,
    Tap,
)

DOUBLE = torch.float64


def conv(spatial_dims, c_in, c_out=None):
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[spatial_dims - 1]
    return nn.Sequential(kind(c_in, c_out or c_in, 3, padding=1), nn.Tanh()).double()


class Scaled(ReversibleLayer):
    """The example of the documentation: only forward and inverse."""

    def __init__(self, f):
        super().__init__()
        self.f = f
        self.scale = nn.Parameter(torch.tensor(0.5, dtype=DOUBLE))

    def forward(self, x1, x2, *args):
        return x1 + self.scale * self.run(self.f, x2, *args), x2

    def inverse(self, y1, y2, *args):
        return y1 - self.scale * self.run(self.f, y2, *args), y2


class Swap(ReversibleLayer):
    """Gives its input on as it is, in another order."""

    def forward(self, x1, x2):
        return x2, x1

    def inverse(self, y1, y2):
        return y2, y1


LAYERS = {
    "coupling of two": lambda d: [AdditiveCoupling(conv(d, 2), conv(d, 2))],
    "coupling of one": lambda d: [AdditiveCoupling(conv(d, 2))],
    "generic": lambda d: [Scaled(conv(d, 2))],
    "pass-through": lambda d: [Swap()],
    "haar": lambda d: [HaarDownsample(d), HaarUpsample(d)],
    "haar down": lambda d: [HaarDownsample(d)],
    "pixel shuffle": lambda d: [PixelShuffleDownsample(d), PixelShuffleUpsample(d)],
    "pixel shuffle down": lambda d: [PixelShuffleDownsample(d)],
    "skip": lambda d: [SplitSkip(0.3), AdditiveCoupling(conv(d, 1)), JoinSkip(0.3)],
    "skip of unequal numbers": lambda d: [
        SplitSkip(channels=(1, 0)),
        AdditiveCoupling(conv(d, 2, 1)),
        AdditiveCoupling(conv(d, 1, 2)),
        JoinSkip(channels=(1, 0)),
    ],
}


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_inverse_and_gradcheck(name, spatial_dims):
    torch.manual_seed(0)
    net = ReversibleSequence(LAYERS[name](spatial_dims))
    x = torch.randn(2, 4, *[2] * spatial_dims, dtype=DOUBLE, requires_grad=True)
    assert (net.inverse(net(x)) - x).abs().max() < 1e-12
    names = [n for n, _ in net.named_parameters()]

    def run(x, *parameters):
        return torch.func.functional_call(net, dict(zip(names, parameters, strict=True)), (x,))

    parameters = [p.detach().requires_grad_() for p in net.parameters()]
    assert torch.autograd.gradcheck(run, (x, *parameters), fast_mode=True)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_by_itself_is_an_ordinary_module(name):
    layers = LAYERS[name](2)
    x = torch.randn(2, 4, 4, 4, dtype=DOUBLE, requires_grad=True)
    state = x.chunk(2, 1)
    for layer in layers:
        count = layer.num_inputs
        state = layer(*state[:count]) + state[count:]
    expected = ReversibleSequence(layers)(x)
    assert torch.equal(torch.cat(state, 1), expected)


def test_haar_is_the_orthonormal_transform():
    x = torch.arange(4.0).view(1, 1, 2, 2)  # 0 1 / 2 3
    down, _ = HaarDownsample(2)(x, x)
    # half of: sum, difference along the last axis, along the first, both
    assert torch.equal(down.flatten(), torch.tensor([3.0, -1.0, -2.0, 0.0]))
    volume = torch.randn(2, 3, 4, 6, 8)
    down, _ = HaarDownsample(3)(volume, volume)
    assert torch.allclose(down.norm(), volume.norm())
    low = F.avg_pool3d(volume, 2) * 8**0.5
    assert torch.allclose(down[:, ::8], low, atol=1e-6)


def test_pixel_shuffle_has_the_order_of_torch():
    x = torch.randn(2, 3, 4, 6)
    down, _ = PixelShuffleDownsample(2)(x, x)
    assert torch.equal(down, F.pixel_unshuffle(x, 2))
    up, _ = PixelShuffleUpsample(2)(down, down)
    assert torch.equal(up, F.pixel_shuffle(down, 2))


@pytest.mark.parametrize("layer", [HaarDownsample, PixelShuffleDownsample])
def test_resampling_keeps_the_memory_format(layer):
    x = torch.randn(2, 3, 4, 6).contiguous(memory_format=torch.channels_last)
    y, _ = layer(2)(x, x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    y, _ = layer(2)(x.contiguous(), x)
    assert y.is_contiguous()


def test_skips_are_copies_so_that_they_hold_no_whole_stream():
    x = torch.randn(2, 4, 4, 4)
    for part in SplitSkip()(x, x):
        assert part.untyped_storage().nbytes() == part.numel() * 4


@pytest.mark.parametrize("arithmetic", ["float", "exact"])
def test_a_number_of_skipping_channels_for_each_stream(arithmetic):
    layers = [
        SplitSkip(channels=(2, 0)),
        AdditiveCoupling(conv(2, 2, 1)),
        JoinSkip(channels=(2, 0)),  # the streams have changed places
        AdditiveCoupling(conv(2, 1, 4)),
    ]
    streams = torch.randn(1, 5, 3, 3).split((3, 2), 1)
    assert [t.shape[1] for t in layers[0](*streams)] == [1, 2, 2, 0]
    net = ReversibleSequence(layers, arithmetic=arithmetic)
    x = torch.randn(2, 5, 3, 3, dtype=DOUBLE, requires_grad=True)
    assert (net.inverse(net(x)) - x).abs().max() < (1e-12 if arithmetic == "float" else 1e-6)
    results = []
    for net.save_memory in (True, False):
        results.append(gradients(net, x))
    for saved, plain in zip(*results, strict=True):
        assert (saved - plain).abs().max() < 1e-12


# --- the sequence -----------------------------------------------------------------------------


def gradients(net, x, *args, **kwargs):
    net.zero_grad()
    for leaf in (x, *args):
        leaf.grad = None
    y = net(x, *args, **kwargs)
    (y.sin() * torch.linspace(1, 2, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return [y.detach(), x.grad, *(a.grad for a in args), *(p.grad for p in net.parameters())]


class Modulated(nn.Module):
    """A sub-network with side inputs of several forms."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1).double()

    def forward(self, x, shift, scales=None, *, mode="sin"):
        y = getattr(torch, mode)(self.conv(x)) + shift
        return y if scales is None else y * scales["scale"][0]


@pytest.mark.parametrize("layer", [AdditiveCoupling, Scaled])
def test_side_inputs_in_any_form_get_their_gradients(layer):
    torch.manual_seed(0)
    net = ReversibleSequence([layer(Modulated(2)) for _ in range(3)])
    x = torch.randn(2, 4, 4, 4, dtype=DOUBLE, requires_grad=True)
    shift = torch.randn(2, 1, 1, 1, dtype=DOUBLE, requires_grad=True)
    scale = torch.randn((), dtype=DOUBLE, requires_grad=True)
    results = []
    for save_memory in (True, False):
        net.save_memory = save_memory
        scale.grad = None
        if layer is AdditiveCoupling:
            found = gradients(net, x, shift, scales={"scale": (scale, "unused")}, mode="cos")
        else:
            found = gradients(net, x, shift)
        results.append([*found, scale.grad])
    for a, b in zip(*results, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a - b).abs().max() < 1e-10


def test_a_tuple_of_streams_comes_back_as_a_tuple_and_may_keep_skips():
    net = ReversibleSequence([AdditiveCoupling(conv(2, 2)), SplitSkip(), HaarDownsample(2)])
    x1, x2 = torch.randn(2, 1, 2, 4, 4, dtype=DOUBLE, requires_grad=True).unbind()
    outputs = net((x1, x2))
    assert [tuple(o.shape) for o in outputs] == [(1, 4, 2, 2)] * 2 + [(1, 1, 4, 4)] * 2
    back = net.inverse(outputs)
    assert (back[0] - x1).abs().max() < 1e-12
    assert (back[1] - x2).abs().max() < 1e-12
    outputs[3].sum().backward()  # the gradient of a skip alone
    assert net[0].f[0].weight.grad is not None


def test_unequal_streams_are_split_again_by_the_inverse():
    net = ReversibleSequence(
        [AdditiveCoupling(conv(2, 2, 3)), HaarDownsample(2), AdditiveCoupling(conv(2, 12, 8))]
    )
    x = torch.randn(1, 5, 4, 4, dtype=DOUBLE)
    assert (net.inverse(net(x)) - x).abs().max() < 1e-12


def test_another_axis_than_the_channels():
    net = ReversibleSequence([AdditiveCoupling(nn.Linear(4, 4).double())], split_dim=-1)
    x = torch.randn(2, 3, 8, dtype=DOUBLE, requires_grad=True)
    assert net(x).shape == x.shape
    assert (net.inverse(net(x)) - x).abs().max() < 1e-12


def test_container_protocol_and_repr():
    net = ReversibleSequence([AdditiveCoupling(nn.Identity()), HaarDownsample(2), Tap("a")])
    assert len(net) == 3
    assert net[1] is list(net)[1]
    text = repr(net)
    assert "save_memory=True" in text
    assert "spatial_dims=2" in text
    assert "name='a'" in text


def test_streams_are_float32_under_autocast():
    net = ReversibleSequence([AdditiveCoupling(nn.Linear(4, 4))], split_dim=-1)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(torch.randn(2, 8, dtype=torch.bfloat16))
    assert y.dtype == torch.float32


# --- errors -----------------------------------------------------------------------------------


def wide(c):
    return nn.Conv2d(c, c + 1, 1)


@pytest.mark.parametrize(
    ("layers", "channels", "message"),
    [
        ([AdditiveCoupling(nn.Identity(), wide(2))], 4, r"layer 0 \(AdditiveCoupling\).*\bg gave"),
        ([HaarDownsample(2), HaarDownsample(2)], 4, r"layer 1 \(HaarDownsample\).*even"),
        ([PixelShuffleUpsample(2)], 4, r"layer 0 \(PixelShuffleUpsample\).*divide by 4"),
        ([HaarDownsample(3)], 4, r"layer 0 .*3 spatial axes"),
        ([JoinSkip()], 4, r"layer 0 \(JoinSkip\).*takes 4 tensors"),
        ([SplitSkip(), HaarDownsample(2), JoinSkip()], 4, r"layer 2 .*upsampling missing"),
        ([SplitSkip(), JoinSkip(0.2)], 8, r"layer 1 .*same fraction"),
        ([SplitSkip(channels=(1, 1)), JoinSkip(channels=(1, 2))], 8, r"layer 1 .*same fraction"),
        ([SplitSkip(channels=(2, 1))], 4, r"layer 0 .*stream 1 with 2 channels.*a skip of 2"),
        ([SplitSkip()], 4, "lacks its JoinSkip"),
        ([SplitSkip()], 2, r"layer 0 \(SplitSkip\).*1 channel"),
        ([], 1, "can't be split"),
        ([ReversibleSequence([HaarDownsample(1)])], 4, r"layer 0\.0 \(HaarDownsample\)"),
    ],
)
def test_errors_name_the_layer(layers, channels, message):
    for needs_grad in (True, False):
        with pytest.raises(ReversibleError, match=message):
            ReversibleSequence(layers)(torch.randn(1, channels, 2, 2, requires_grad=needs_grad))


def test_construction_errors():
    with pytest.raises(TypeError, match=r"layer 1 is a Conv2d.*AdditiveCoupling"):
        ReversibleSequence([Swap(), nn.Conv2d(1, 1, 1)])
    with pytest.raises(TypeError, match="f must be"):
        AdditiveCoupling(torch.tanh)
    with pytest.raises(TypeError, match="g must be"):
        AdditiveCoupling(nn.Identity(), torch.tanh)
    with pytest.raises(ValueError, match="anchor_every"):
        ReversibleSequence([], anchor_every=0)
    with pytest.raises(ValueError, match=r"same name.*'a'"):
        ReversibleSequence([Tap("a"), ReversibleSequence([Tap("a")])])
    with pytest.raises(ValueError, match="fraction"):
        SplitSkip(1.0)
    with pytest.raises(ValueError, match="channels must be"):
        SplitSkip(channels=(1, -1))
    with pytest.raises(ValueError, match="spatial_dims"):
        HaarDownsample(4)
    with pytest.raises(TypeError, match="expected a tensor or a tuple"):
        ReversibleSequence([])("x")


def test_a_layer_without_inverse_says_so():
    class OneWay(ReversibleLayer):
        def forward(self, x1, x2):
            return x1.relu(), x2

    net = ReversibleSequence([Swap(), OneWay()])
    y = net(torch.randn(1, 4, 2, 2, requires_grad=True))
    with pytest.raises(ReversibleError, match=r"layer 1 \(OneWay\).*has no inverse"):
        y.sum().backward()
    with pytest.raises(ReversibleError, match=r"layer 1 \(OneWay\).*has no inverse"):
        net.inverse(y.detach())


def test_errors_of_sub_networks_keep_their_type_and_get_a_note():
    class Fails(nn.Module):
        def forward(self, x):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        ReversibleSequence([Swap(), AdditiveCoupling(Fails())])(torch.randn(1, 4, 2, 2))
    assert caught.value.__notes__ == ["(raised inside layer 1 (AdditiveCoupling))"]


def test_a_sub_network_that_returns_no_tensor():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(ReversibleError, match=r"layer 0 .*Pair returned tuple"):
        ReversibleSequence([AdditiveCoupling(Pair())])(torch.randn(1, 4, 2, 2))


@pytest.mark.parametrize("where", ["pre", "post"])
def test_hooks_on_a_layer_that_change_its_streams_are_refused(where):
    net = ReversibleSequence([AdditiveCoupling(nn.Tanh()), AdditiveCoupling(nn.Tanh())])
    if where == "pre":
        net[1].register_forward_pre_hook(lambda m, args: tuple(2 * a for a in args))
    else:
        net[1].register_forward_hook(lambda m, args, out: tuple(2 * o for o in out))
    with pytest.raises(ReversibleError, match=r"layer 1 .*hook changed"):
        net(torch.randn(1, 4, requires_grad=True))


def test_hooks_on_a_layer_that_only_look_are_fine():
    net = ReversibleSequence([AdditiveCoupling(nn.Tanh(), nn.Tanh()) for _ in range(2)]).double()
    seen = []
    net[1].register_forward_hook(lambda m, args, out: seen.append(out[0].sum().item()))
    net[1].register_full_backward_hook(lambda m, gi, go: seen.append(go[0].sum().item()))
    x = torch.randn(1, 4, dtype=DOUBLE, requires_grad=True)
    y = net(x)
    y.pow(2).sum().backward()
    assert seen == pytest.approx([y[:, :2].sum().item(), 2 * y[:, :2].sum().item()])


def test_dropout_called_without_run_is_found():
    """Two sub-networks that draw, called directly: the inverse draws in another order."""

    class Direct(ReversibleLayer):
        def __init__(self):
            super().__init__()
            self.f, self.g = nn.Dropout(0.5), nn.Dropout(0.5)

        def forward(self, x1, x2):
            y1 = x1 + self.f(x2)
            return y1, x2 + self.g(y1)

        def inverse(self, y1, y2):
            x2 = y2 - self.g(y1)
            return y1 - self.f(x2), x2

    y = ReversibleSequence([Direct()])(torch.randn(1, 64, 8, requires_grad=True))
    with pytest.raises(ReversibleError, match=r"layer 0 \(Direct\).*self\.run"):
        y.sum().backward()


def test_the_example_of_the_docstring_with_dropout_in_both_directions():
    torch.manual_seed(0)
    net = ReversibleSequence([Scaled(nn.Sequential(conv(2, 2), nn.Dropout(0.4))) for _ in range(3)])
    x = torch.randn(2, 4, 4, 4, dtype=DOUBLE, requires_grad=True)
    results = []
    for save_memory in (True, False):
        net.save_memory = save_memory
        torch.manual_seed(1)
        results.append(gradients(net, x))
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() < 1e-10


def test_public_names():
    for name in revgrad.__all__:
        assert getattr(revgrad, name) is not None
    assert revgrad.nn.AdditiveCoupling is revgrad.AdditiveCoupling
    assert revgrad.memory.measure is not None


# --- what a review found ------------------------------------------------------------------------


def plain_and_reversible(net, run):
    """The results of `run` with ordinary autograd and with the tape."""
    results = []
    for net.save_memory in (False, True):
        torch.manual_seed(1)
        net.zero_grad()
        results.append(run())
    return results


def assert_same(results, tolerance=1e-10):
    for a, b in zip(*results, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a - b).abs().max() <= tolerance * (1 + a.abs().max())


class TwoNetworks(ReversibleLayer):
    """A hand-written step with two sub-networks in one node."""

    def __init__(self):
        super().__init__()
        self.f, self.g = conv(1, 2), conv(1, 2)

    def forward(self, x1, x2):
        y1 = x1 + self.run(self.f, x2)
        return y1, x2 + self.run(self.g, y1)

    def inverse(self, y1, y2):
        x2 = y2 - self.run(self.g, y1)
        return y1 - self.run(self.f, x2), x2

    def backward_step(self, rewind, outputs, grads):
        (y1, y2), (d1, d2) = outputs, grads
        g = rewind.evaluate(self.g, y1, d2)
        x2 = y2 - g.take_value()
        d1 = rewind.add(d1, g.pull())
        f = rewind.evaluate(self.f, x2, d1)
        x1 = y1 - f.take_value()
        return (x1, x2), (d1, rewind.add(d2, f.pull()))


@pytest.mark.parametrize("layer", [lambda: Scaled(conv(1, 2)), TwoNetworks])
def test_double_backward_of_any_layer(layer):
    torch.manual_seed(0)
    net = ReversibleSequence([layer() for _ in range(3)])
    x = torch.randn(2, 4, 5, dtype=DOUBLE, requires_grad=True)

    def run():
        inputs = [x, *net.parameters()]
        first = torch.autograd.grad(net(x).sin().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.pow(2).sum() for g in first), inputs)
        return [*first, *second]

    assert_same(plain_and_reversible(net, run))


def test_complex_sub_networks_and_streams():
    class Fourier(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, dtype=torch.complex128))

        def forward(self, x):
            return torch.fft.irfft(torch.fft.rfft(x) * self.weight, n=8)

    net = ReversibleSequence([AdditiveCoupling(Fourier()) for _ in range(2)])
    x = torch.randn(2, 4, 8, dtype=DOUBLE, requires_grad=True)

    def run():
        return torch.autograd.grad(net(x).sin().sum(), [x, *net.parameters()])

    assert_same(plain_and_reversible(net, run))
    net = ReversibleSequence([AdditiveCoupling(nn.Linear(2, 2).to(torch.cfloat))], split_dim=-1)
    x = torch.randn(3, 4, dtype=torch.cfloat, requires_grad=True)

    def run_complex():
        return torch.autograd.grad(net(x).abs().sum(), [x, *net.parameters()])

    assert_same(plain_and_reversible(net, run_complex), 1e-5)


@pytest.mark.parametrize("two", [False, True])
def test_a_coupling_whose_forward_is_overridden(two):
    class Doubled(AdditiveCoupling):
        def forward(self, x1, x2):
            y1, y2 = super().forward(x1, x2)
            return 2 * y1, y2

        def inverse(self, y1, y2):
            return super().inverse(y1 / 2, y2)

    net = ReversibleSequence([Doubled(conv(1, 2), conv(1, 2) if two else None)] * 2)
    x = torch.randn(2, 4, 5, dtype=DOUBLE, requires_grad=True)

    def run():
        y = net(x)
        return [y.detach(), *torch.autograd.grad(y.sin().sum(), [x, *net.parameters()])]

    assert_same(plain_and_reversible(net, run))


@pytest.mark.parametrize(
    "layer",
    [
        AdditiveCoupling(nn.Tanh()),
        AdditiveCoupling(nn.Tanh(), nn.Tanh()),
        HaarDownsample(2),
        HaarUpsample(2),
        PixelShuffleDownsample(2),
        PixelShuffleUpsample(2),
        SplitSkip(),
        JoinSkip(),
        Tap("a"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_the_layers_of_the_package_take_their_own_step_back(layer):
    """The generic one would be right too, but costs an evaluation and memory."""
    assert all(part.backward_step is not None for part in layer.parts(layer.forward))


def test_a_forward_from_a_mixin():
    class Mixin:
        def forward(self, x1, x2):
            return x2, x1

    class FromMixin(Mixin, ReversibleLayer):
        def inverse(self, y1, y2):
            return y2, y1

    x = torch.randn(2, 4, requires_grad=True)
    ReversibleSequence([FromMixin()])(x)[:, 0].sum().backward()
    assert x.grad.sum(0).tolist() == [0, 0, 2, 0]
    layer = Swap()
    layer.forward = lambda a, b: (b, a)
    with pytest.raises(ReversibleError, match="replaced on the object"):
        ReversibleSequence([layer])(x)


def test_one_model_in_several_threads():
    torch.manual_seed(0)
    net = ReversibleSequence([AdditiveCoupling(conv(1, 2), conv(1, 2)) for _ in range(3)])
    parameters = list(net.parameters())
    xs = [torch.randn(2, 4, 5, dtype=DOUBLE, requires_grad=True) for _ in range(3)]
    expected = [torch.autograd.grad(net(x).sin().sum(), [x, *parameters]) for x in xs]
    wrong = []

    def work(x, right):
        for _ in range(30):
            found = torch.autograd.grad(net(x).sin().sum(), [x, *parameters], allow_unused=True)
            wrong.extend(
                f is None or not torch.allclose(f, r) for f, r in zip(found, right, strict=True)
            )

    threads = [threading.Thread(target=work, args=a) for a in zip(xs, expected, strict=True)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(wrong) == 3 * 30 * (1 + len(parameters))
    assert not any(wrong)
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))


@pytest.mark.parametrize("where", ["pre", "post"])
def test_hooks_on_an_inner_sequence_that_change_its_streams_are_refused(where):
    inner = ReversibleSequence([AdditiveCoupling(nn.Tanh())])
    net = ReversibleSequence([AdditiveCoupling(nn.Tanh()), inner])
    if where == "pre":
        inner.register_forward_pre_hook(lambda m, args: (tuple(2 * t for t in args[0]),))
    else:
        inner.register_forward_hook(lambda m, args, out: tuple(2 * t for t in out))
    with pytest.raises(ReversibleError, match=r"sequence 1: a forward hook changed"):
        net(torch.randn(1, 4, requires_grad=True))


def test_cached_parametrisations():
    def sub():
        return nn.utils.parametrizations.weight_norm(nn.Linear(2, 2).double())

    net = ReversibleSequence([AdditiveCoupling(sub()) for _ in range(2)], split_dim=-1)
    x = torch.randn(3, 4, dtype=DOUBLE, requires_grad=True)

    def run():
        with nn.utils.parametrize.cached():
            return torch.autograd.grad(net(x).sin().sum(), [x, *net.parameters()])

    assert_same(plain_and_reversible(net, run))


def test_a_buffer_that_needs_a_gradient_is_refused():
    sub = nn.Linear(2, 2)
    sub.register_buffer("scale", torch.ones(1, requires_grad=True))
    with pytest.raises(ReversibleError, match=r"layer 0 .*buffer 'scale'"):
        ReversibleSequence([AdditiveCoupling(sub)], split_dim=-1)(torch.randn(1, 4))


def test_attention_with_padding_in_evaluation():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dtype=DOUBLE)
            self.encoder = nn.TransformerEncoder(layer, 1)

        def forward(self, x, mask):
            return self.encoder(x, src_key_padding_mask=mask)

    torch.manual_seed(0)
    net = ReversibleSequence([AdditiveCoupling(Encoder()) for _ in range(2)], split_dim=-1).eval()
    x = torch.randn(2, 3, 8, dtype=DOUBLE, requires_grad=True)
    mask = torch.tensor([[False, False, True], [False, True, True]])

    def run():
        y = net(x, mask)
        return [y.detach(), *torch.autograd.grad(y.sin().sum(), [x, *net.parameters()])]

    assert_same(plain_and_reversible(net, run))


def test_a_hook_that_keeps_the_input_of_a_sub_network_finds_it_unchanged():
    torch.manual_seed(0)
    net = ReversibleSequence([AdditiveCoupling(conv(1, 2), conv(1, 2)) for _ in range(3)])
    kept = {}
    for i, layer in enumerate(net):
        layer.f.register_forward_hook(lambda m, args, out, i=i: kept.update({i: args[0].detach()}))
    y = net(torch.randn(2, 4, 5, dtype=DOUBLE))
    before = {i: t.clone() for i, t in kept.items()}
    y.sum().backward()
    for i, t in kept.items():
        assert torch.allclose(t, before[i])


def test_a_module_that_sets_its_own_mode():
    class Modal(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv(1, 2)

        def forward(self, x):
            self.train(not self.training)
            return self.conv(x)

    net = ReversibleSequence([AdditiveCoupling(Modal())])
    y = net(torch.randn(2, 4, 5, dtype=DOUBLE))
    modes = [m.training for m in net.modules()]
    y.sum().backward()
    assert [m.training for m in net.modules()] == modes


def test_a_wrong_inverse_is_found():
    class Wrong(Scaled):
        def inverse(self, y1, y2):
            return y1 - 0.9 * self.run(self.f, y2), y2

    y = ReversibleSequence([Wrong(conv(1, 2))])(torch.randn(2, 4, 5, dtype=DOUBLE))
    with pytest.raises(ReversibleError, match=r"layer 0 \(Wrong\).*does not undo"):
        y.sum().backward()


def test_lazy_modules_say_what_to_do():
    net = ReversibleSequence([AdditiveCoupling(nn.LazyConv1d(2, 3, padding=1))])
    x = torch.randn(2, 4, 5)
    with pytest.raises(ReversibleError, match=r"layer 0 .*no_grad"):
        net(x)
    with torch.no_grad():
        net(x)
    net(x).sum().backward()


def test_batched_gradients():
    net = ReversibleSequence([AdditiveCoupling(conv(1, 2), conv(1, 2)), HaarDownsample(1)])
    x = torch.randn(1, 4, 4, dtype=DOUBLE)

    def run():
        return [torch.autograd.functional.jacobian(net, x, vectorize=True)]

    assert_same(plain_and_reversible(net, run))


def test_errors_of_an_inner_network_name_both_places():
    inner = ReversibleSequence([AdditiveCoupling(nn.Identity(), wide(1))])
    net = ReversibleSequence([Swap(), AdditiveCoupling(inner)])
    with pytest.raises(ReversibleError, match=r"^layer 1 \(AdditiveCoupling\), layer 0 \("):
        net(torch.randn(1, 4, 2, 2))


def test_a_layer_that_returns_no_tuple():
    class One(ReversibleLayer):
        def forward(self, x1, x2):
            return x1

    with pytest.raises(ReversibleError, match=r"layer 0 \(One\).*must return a tuple"):
        ReversibleSequence([One()])(torch.randn(1, 4, requires_grad=True))


def test_a_sub_network_replaced_between_the_passes():
    net = ReversibleSequence([AdditiveCoupling(nn.Tanh())])
    y = net(torch.randn(1, 4, requires_grad=True))
    net[0].f = nn.Sigmoid()
    with pytest.raises(ReversibleError, match=r"layer 0 .*replaced"):
        y.sum().backward()


def test_the_inverse_along_another_axis_needs_equal_streams():
    net = ReversibleSequence([AdditiveCoupling(nn.Tanh())], split_dim=-1)
    with pytest.raises(ReversibleError, match="as a tuple"):
        net.inverse(torch.randn(2, 3, 5))
    with pytest.raises(ReversibleError, match="no axis 3"):
        ReversibleSequence([], split_dim=3)(torch.randn(2, 5))
    channels = ReversibleSequence([AdditiveCoupling(conv(1, 1, 2))], split_dim=-2)
    x = torch.randn(2, 3, 5, dtype=DOUBLE)
    assert torch.allclose(channels.inverse(channels(x)), x)


@pytest.mark.parametrize("kind", ["bfloat16", "autocast", "float32"])
def test_deep_half_precision_is_warned_of_drift(kind):
    def step(depth, **options):
        layers = [AdditiveCoupling(nn.Hardtanh()) for _ in range(depth)]
        net = ReversibleSequence(layers, **options)
        x = torch.randn(1, 2, 2, 2, requires_grad=True)
        if kind == "bfloat16":
            net, x = net.bfloat16(), x.bfloat16()
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
            net(x)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(20)
        step(120, arithmetic="exact")
        step(120, anchor_every=20)
        if kind == "float32":
            step(120)
    if kind != "float32":
        with pytest.warns(UserWarning, match='Use arithmetic="exact"') as caught:
            step(120)
        assert caught[0].filename == __file__


def test_a_sub_network_that_changes_a_side_input_is_refused():
    class Changes(nn.Module):
        def forward(self, x, side):
            side.mul_(2)
            return x * side

    sequence = ReversibleSequence([AdditiveCoupling(Changes())])
    x, side = torch.randn(1, 2, 3, requires_grad=True), torch.ones(1)
    with pytest.raises(ReversibleError, match="Changes changed a side input in place"):
        sequence(x, side)
    sequence.save_memory = False
    sequence(x, side).sum().backward()  # by ordinary autograd it is sound
