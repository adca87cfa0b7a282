"""Exact arithmetic: to the bit the results and gradients of ordinary PyTorch."""

import copy
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from revgrad import (
    AdditiveCoupling,
    FixedPoint,
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
from revgrad.autograd.inventory import may_misread_gradients
from revgrad.fixed_point import grid
from revgrad.memory import measure

from .rounded import Rounded


class Swap(ReversibleLayer):
    """A permutation, exact by what it is."""

    exact = True

    def forward(self, x1, x2):
        return x2, x1

    def inverse(self, y1, y2):
        return y2, y1


LAYERS = {
    "two": AdditiveCoupling,
    "one": AdditiveCoupling,
    "swap": Swap,
    "haar_down": lambda: HaarDownsample(2),
    "haar_up": lambda: HaarUpsample(2),
    "shuffle_down": lambda: PixelShuffleDownsample(2),
    "shuffle_up": lambda: PixelShuffleUpsample(2),
    "split": SplitSkip,
    "join": JoinSkip,
}


class Residual(nn.Module):
    """Uses its input twice, so the order in which gradients are summed up matters."""

    def __init__(self, c):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.InstanceNorm2d(c, affine=True))

    def forward(self, x):
        return x + self.body(x).sin()


SUB_NETWORKS = {
    "norm": lambda c: nn.Sequential(
        nn.Conv2d(c, c, 3, padding=1), nn.InstanceNorm2d(c, affine=True), nn.LeakyReLU(0.01)
    ),
    "no norm": lambda c: small(nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.SiLU())),
    "batch norm": lambda c: nn.Sequential(
        nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c), nn.ReLU()
    ),
    "dropout": lambda c: nn.Sequential(
        nn.Conv2d(c, c, 3, padding=1), nn.GroupNorm(1, c), nn.Dropout(0.3), nn.GELU()
    ),
    "residual": lambda c: nn.Sequential(Residual(c), nn.Tanh()),
}


def small(module):
    """Smaller weights: without a norm the streams would leave their range in deep networks."""
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(0.2)
    return module


def compose(kinds, channels, sub):
    """Steps with fitting channels; what is opened is closed at the end."""
    steps, c, open_ = [], channels, []
    for kind in kinds:
        if kind in ("two", "one"):
            steps.append((kind, [sub(c) for _ in range(1 + (kind == "two"))]))
        elif kind == "swap":
            steps.append((kind, []))
        elif kind in ("haar", "shuffle") and sum(o != "split" for o, _ in open_) < 2:
            steps.append((f"{kind}_down", []))
            open_.append((f"{kind}_up", c))
            c *= 4
        elif kind == "split" and c > 3:  # an axis of size 1 leaves the memory format open
            steps.append(("split", []))
            open_.append(("join", c))
            c -= c // 2
        elif kind == "close" and open_:
            name, c = open_.pop()
            steps.append((name, []))
    steps += [(name, []) for name, _ in reversed(open_)]
    return steps


def network(steps, **options):
    layers = [LAYERS[name](*modules) for name, modules in steps]
    return ReversibleSequence(layers, arithmetic="exact", **options)


def run(function, parameters, x, dy, autocast=False, seed=0):
    """Output, input gradient, every parameter's gradient, and the generator's state after it."""
    parameters = list(parameters)
    for p in parameters:
        p.grad = None
    x = x.clone().requires_grad_()
    torch.manual_seed(seed)
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        y = function(x)
    y.backward(dy)
    return [y.detach(), x.grad, *(p.grad for p in parameters), torch.rand(1)]


def expect_equal(found, expected):
    assert len(found) == len(expected)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert (a is None and b is None) or (a.dtype == b.dtype and torch.equal(a, b)), i


def drawn(min_layers, max_layers, examples):
    kinds = ["two", "two", "one", "swap", "haar", "shuffle", "split", "close"]

    def decorate(test):
        return settings(max_examples=examples, deadline=None)(
            given(
                kinds=st.lists(st.sampled_from(kinds), min_size=min_layers, max_size=max_layers),
                sub=st.sampled_from(sorted(SUB_NETWORKS)),
                channels=st.integers(2, 5),
                batch=st.integers(1, 3),
                size=st.sampled_from([(8, 8), (8, 16)]),
                dtype=st.sampled_from(["float32", "float32", "float64", "bfloat16", "autocast"]),
                bits=st.sampled_from([12, 20, 20]),
                channels_last=st.booleans(),
                seed=st.integers(0, 1000),
            )(test)
        )

    return decorate


def check(kinds, sub, channels, batch, size, dtype, bits, channels_last, seed):
    torch.manual_seed(seed)
    autocast = dtype == "autocast"
    kind = torch.float32 if autocast else getattr(torch, dtype)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    steps = compose(kinds, channels, SUB_NETWORKS[sub])
    net = network(steps, fraction_bits=bits).to(kind)
    x, dy = (
        torch.randn(batch, 2 * channels, *size).to(kind).contiguous(memory_format=layout)
        for _ in range(2)
    )
    twin = copy.deepcopy([modules for _, modules in steps])
    copies = [(name, modules) for (name, _), modules in zip(steps, twin, strict=True)]
    others = nn.ModuleList(m for _, modules in copies for m in modules)

    found = run(net, net.parameters(), x, dy, autocast, seed)
    plain = Rounded(copies, bits, kind, layout, may_misread_gradients(net))
    expected = run(plain, others.parameters(), x, dy, autocast, seed)
    expect_equal(found, expected)
    expect_equal(list(net.buffers()), list(others.buffers()))
    # The sequence's own ordinary mode is the same function.
    net.load_state_dict(copy.deepcopy(net.state_dict()))
    again = run(net, net.parameters(), x, dy, autocast, seed)
    net.save_memory = False
    expect_equal(run(net, net.parameters(), x, dy, autocast, seed), again)

    if sub != "dropout":
        fixed = FixedPoint.from_float(x, bits)
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            back = net.inverse(net(fixed))
        assert torch.equal(back.integers, fixed.integers)


@drawn(min_layers=1, max_layers=40, examples=150)
def test_equal_to_the_bit(**drawn):
    check(**drawn)


@pytest.mark.slow
@drawn(min_layers=100, max_layers=300, examples=60)
def test_equal_to_the_bit_at_depth_300(**drawn):
    check(**drawn)


# --- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_200_training_steps_end_with_identical_weights(optimizer):
    torch.manual_seed(0)
    sub = SUB_NETWORKS["dropout"]
    steps = compose(["two", "haar", "two", "one", "close", "split", "two"], 4, sub)
    twin = copy.deepcopy(steps)
    net, plain = network(steps), Rounded(twin)
    weights = nn.ModuleList(m for _, modules in twin for m in modules)
    data = [(torch.randn(2, 8, 8, 8), torch.randn(2, 8, 8, 8)) for _ in range(10)]

    def train(function, parameters):
        parameters = list(parameters)
        kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]
        stepper = kind(parameters, lr=0.01, **({"momentum": 0.9} if optimizer == "sgd" else {}))
        torch.manual_seed(1)
        losses = []
        for i in range(200):
            x, target = data[i % len(data)]
            loss = (function(x) - target).square().mean()
            stepper.zero_grad()
            loss.backward()
            stepper.step()
            losses.append(loss.item())
        return losses, parameters

    losses, found = train(net, net.parameters())
    expected_losses, expected = train(plain, weights.parameters())
    assert losses == expected_losses and losses[-1] < losses[0]
    expect_equal(found, expected)


def test_float_arithmetic_is_not_equal():
    """What the tests above compare does differ where it may."""
    torch.manual_seed(0)
    steps = compose(["two"] * 20, 4, SUB_NETWORKS["norm"])
    net = network(steps)
    net.arithmetic = "float"
    x, dy = torch.randn(2, 8, 8, 8), torch.randn(2, 8, 8, 8)
    found = run(net, net.parameters(), x, dy)
    net.save_memory = False
    expected = run(net, net.parameters(), x, dy)
    assert not any(torch.equal(a, b) for a, b in zip(found[1:4], expected[1:4], strict=True))


# --- everything else that a sequence can do -----------------------------------------------------


def norm_block(c):
    return SUB_NETWORKS["norm"](c)


class Affine(ReversibleLayer):
    """Multiplies a stream, which no grid can take back."""

    def __init__(self, f):
        super().__init__()
        self.f = f
        self.scale = nn.Parameter(torch.tensor(0.3))

    def forward(self, x1, x2):
        return x1 * self.scale.exp() + self.run(self.f, x2), x2

    def inverse(self, y1, y2):
        return (y1 - self.run(self.f, y2)) * (-self.scale).exp(), y2


class Difference(ReversibleLayer):
    """An exact layer of a user, without a step back of its own."""

    exact = True

    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x1, x2):
        return x2.flip(1), x1 - self.run(self.f, x2)

    def inverse(self, y1, y2):
        x2 = y1.flip(1)
        return y2 + self.run(self.f, x2), x2


def against_plain(net, x, loss, seed=0):
    """Results with the tape, and with ordinary autograd of the same function."""
    results = []
    for save_memory in (True, False):
        net.save_memory = save_memory
        net.zero_grad()
        x.grad = None
        torch.manual_seed(seed)
        value = loss(net(x))
        value.backward()
        results.append(
            [value.detach(), x.grad.clone(), *(p.grad.clone() for p in net.parameters())]
        )
    net.save_memory = True
    return results


def input_tensor(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def weighted(y):
    return (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum()


def test_a_layer_without_an_exact_form_has_its_input_stored():
    torch.manual_seed(0)
    net = ReversibleSequence(
        [
            AdditiveCoupling(norm_block(4), norm_block(4)),
            Affine(norm_block(4)),
            AdditiveCoupling(norm_block(4)),
            Affine(norm_block(4)),
        ],
        arithmetic="exact",
    )
    expect_equal(*against_plain(net, input_tensor(2, 8, 8, 8), weighted))
    assert "input stored, as it has no exact form: layer 1 (Affine), layer 3 (Affine)" in repr(net)
    assert "input stored" not in repr(ReversibleSequence([Swap()], arithmetic="exact"))
    x = input_tensor(2, 8, 8, 8).detach()
    assert (net.inverse(net(x)) - x).abs().max() < 1e-5


def test_an_exact_layer_of_a_user():
    torch.manual_seed(0)
    layers = [Difference(norm_block(4)) for _ in range(6)]
    net = ReversibleSequence(layers, arithmetic="exact")
    expect_equal(*against_plain(net, input_tensor(2, 8, 8, 8), weighted))
    x = FixedPoint.from_float(input_tensor(2, 8, 8, 8).detach())
    assert torch.equal(net.inverse(net(x)).integers, x.integers)


class WrongInverse(Difference):
    exact = True

    def forward(self, x1, x2):
        return x1, x2 + self.run(self.f, x1)

    def inverse(self, y1, y2):
        return y1, y2 + self.run(self.f, y1)


class NotExact(Affine):
    exact = True

    def forward(self, x1, x2):
        return super().forward(x1, x2)

    def inverse(self, y1, y2):
        return super().inverse(y1, y2)


def test_layers_that_are_not_what_they_say():
    x = input_tensor(2, 8, 8, 8)
    net = ReversibleSequence([Swap(), WrongInverse(norm_block(4))], arithmetic="exact")
    with pytest.raises(ReversibleError, match=r"layer 1 \(WrongInverse\): the layer's inverse"):
        net(x).sum().backward()
    net = ReversibleSequence([Swap(), NotExact(norm_block(4))], arithmetic="exact")
    with pytest.raises(ReversibleError, match=r"layer 1 \(NotExact\): .* streams became floats"):
        net(x)


def test_a_subclass_with_other_methods_is_not_taken_for_exact():
    class Scaled(AdditiveCoupling):
        def forward(self, x1, x2):
            return super().forward(0.5 * x1, x2)

        def inverse(self, y1, y2):
            x1, x2 = super().inverse(y1, y2)
            return 2 * x1, x2

    layer = Scaled(norm_block(4), norm_block(4))
    assert not layer.is_exact and AdditiveCoupling(norm_block(4)).is_exact
    net = ReversibleSequence([layer, layer], arithmetic="exact")
    found, expected = against_plain(net, input_tensor(2, 8, 8, 8), weighted)
    expect_equal(found[:2], expected[:2])


def test_taps_side_inputs_and_shared_weights():
    """Where something is used more than once, the order of summation differs: to rounding."""

    class Conditioned(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x, condition, scale=1.0):
            return (self.conv(x) * condition).tanh() * scale

    torch.manual_seed(0)
    shared = Conditioned()
    net = ReversibleSequence(
        [
            AdditiveCoupling(shared, Conditioned()),
            Tap("streams"),
            AdditiveCoupling(Conditioned(), shared),
            Tap("head", nn.Conv2d(8, 2, 1)),
            AdditiveCoupling(Conditioned()),
        ],
        arithmetic="exact",
    )
    results = []
    for save_memory in (True, False):
        net.save_memory = save_memory
        net.zero_grad()
        x, condition = input_tensor(2, 8, 8, 8), input_tensor(2, 4, 8, 8, seed=1)
        y, taps = net(x, condition, scale=0.7)
        assert taps["streams"].dtype == torch.float32 and type(taps["streams"]) is torch.Tensor
        (weighted(y) + weighted(taps["streams"]) + weighted(taps["head"]).sin()).backward()
        values = [y.detach(), taps["streams"].detach(), taps["head"].detach()]
        results.append((values, [x.grad, condition.grad, *(p.grad for p in net.parameters())]))
    expect_equal(results[0][0], results[1][0])
    for a, b in zip(results[0][1], results[1][1], strict=True):
        assert (a - b).abs().max() <= 1e-6 * b.abs().max()


def test_only_a_tapped_value_is_differentiated():
    torch.manual_seed(0)
    net = ReversibleSequence(
        [AdditiveCoupling(norm_block(4)), Tap("t"), AdditiveCoupling(norm_block(4))],
        arithmetic="exact",
    )
    x = input_tensor(2, 8, 8, 8)
    (found,) = torch.autograd.grad(net(x)[1]["t"].square().sum(), x)
    net.save_memory = False
    (expected,) = torch.autograd.grad(net(x)[1]["t"].square().sum(), x)
    assert torch.equal(found, expected)


def test_streams_as_a_tuple_and_nested_sequences():
    torch.manual_seed(0)
    inner = ReversibleSequence([AdditiveCoupling(norm_block(3), norm_block(3)) for _ in range(3)])
    net = ReversibleSequence([Swap(), inner, Swap()], arithmetic="exact", fraction_bits=18)
    results = []
    for save_memory in (True, False):
        net.save_memory = save_memory
        x = input_tensor(2, 3, 8, 8), input_tensor(2, 3, 8, 8, seed=1)
        y = net(x)
        assert isinstance(y, tuple) and y[0].dtype == torch.float32
        (weighted(y[0]) + weighted(y[1])).backward()
        results.append([*(t.detach() for t in y), *(t.grad for t in x)])
    expect_equal(*results)


def test_a_sequence_in_a_sub_network():
    torch.manual_seed(0)
    inner = ReversibleSequence([AdditiveCoupling(norm_block(2))] * 2, arithmetic="exact")
    net = ReversibleSequence([AdditiveCoupling(inner), AdditiveCoupling(norm_block(4))] * 2)
    net.arithmetic = "exact"
    found, expected = against_plain(net, input_tensor(2, 8, 8, 8), weighted)
    inner.save_memory = False
    expect_equal(found[:2], expected[:2])


def chain(depth=4, **options):
    torch.manual_seed(0)
    layers = [AdditiveCoupling(norm_block(4), norm_block(4)) for _ in range(depth)]
    return ReversibleSequence(layers, arithmetic="exact", **options)


def test_second_backward_pass_and_changed_output():
    net, x = chain(), input_tensor(2, 8, 8, 8)
    y = net(x)
    first = torch.autograd.grad(weighted(y), x, retain_graph=True)[0]
    y.detach().mul_(3)  # the tape has streams of its own
    second = torch.autograd.grad(weighted(y), x)[0]
    assert torch.equal(first, second)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("last", [AdditiveCoupling, Affine])
@pytest.mark.parametrize("nested", [False, True])
def test_double_backward(linear, last, nested):
    torch.manual_seed(0)
    net = ReversibleSequence(
        [AdditiveCoupling(norm_block(4), norm_block(4)), last(norm_block(4))], arithmetic="exact"
    )
    if nested:
        net = ReversibleSequence([AdditiveCoupling(net, nn.Conv2d(8, 8, 1))], arithmetic="exact")
    net.double()
    x = input_tensor(1, 16 if nested else 8, 4, 4).detach().double().requires_grad_()
    results = []
    for save_memory in (True, False):
        for module in net.modules():
            module.save_memory = save_memory
        loss = weighted(net(x))
        (grad,) = torch.autograd.grad(loss if linear else loss.sin(), x, create_graph=True)
        loss = (grad * grad.detach().cos()).sum() if linear else grad.square().sum()
        results.append(torch.autograd.grad(loss, [x, *net.parameters()], allow_unused=True))
    for a, b in zip(*results, strict=True):
        if a is None or b is None:
            assert a is b or (b if a is None else a).abs().max() == 0
        else:
            assert (a - b).abs().max() <= 1e-12 * (1 + b.abs().max())


@pytest.mark.parametrize("around", ["save_on_cpu", "checkpoint"])
def test_inside_of_other_ways_to_save_memory(around):
    from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(0)
    net = ReversibleSequence(
        [AdditiveCoupling(norm_block(4)), Affine(norm_block(4)), AdditiveCoupling(norm_block(4))],
        arithmetic="exact",
        fraction_bits=28,  # streams have bits that float32 does not hold
    )
    x = input_tensor(2, 8, 8, 8).detach().clamp(-2, 2).div(4).requires_grad_()

    def result(function, context):
        net.zero_grad()
        x.grad = None
        with context:
            y = function(x)
        weighted(y).backward()
        return [y.detach(), x.grad.clone(), *(p.grad.clone() for p in net.parameters())]

    expected = result(net, nullcontext())
    if around == "save_on_cpu":
        found = result(net, save_on_cpu())
        through_numpy = (lambda t: t.detach().numpy().copy(), torch.from_numpy)
        expect_equal(result(net, saved_tensors_hooks(*through_numpy)), expected)
        with saved_tensors_hooks(*through_numpy):
            y = net(x)
        with pytest.raises(ReversibleError, match="save_on_cpu, and create_graph=True"):
            torch.autograd.grad(y.sum(), x, create_graph=True)
    else:
        found = result(lambda x: checkpoint(net, x, use_reentrant=False), nullcontext())
    expect_equal(found, expected)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("arithmetic", ["float", "exact"])
@pytest.mark.parametrize("save_memory", [True, False])
def test_channels_last_batch_of_one_with_instance_norm(spatial_dims, arithmetic, save_memory):
    """Against float64: PyTorch's own backward pass is wrong there for channels-last gradients."""
    conv = (nn.Conv2d, nn.Conv3d)[spatial_dims - 2]
    norm = (nn.InstanceNorm2d, nn.InstanceNorm3d)[spatial_dims - 2]
    layout = (torch.channels_last, torch.channels_last_3d)[spatial_dims - 2]
    torch.manual_seed(0)
    subs = [nn.Sequential(conv(4, 4, 3, padding=1), norm(4, affine=True), nn.SiLU()) for _ in "abc"]
    net = ReversibleSequence(
        [AdditiveCoupling(*subs[:2]), AdditiveCoupling(subs[2])],
        arithmetic=arithmetic,
        save_memory=save_memory,
    )
    x = torch.randn(1, 8, *[6] * spatial_dims)
    dy = torch.randn_like(x)
    reference = copy.deepcopy(net).double()
    reference.arithmetic, reference.save_memory = "float", False
    exact = x.double().requires_grad_()
    reference(exact).backward(dy.double())
    x = x.contiguous(memory_format=layout).requires_grad_()
    net(x).backward(dy)
    assert (x.grad - exact.grad).abs().max() < 1e-4 * exact.grad.abs().max()


def test_a_step_back_that_gives_floats_is_refused():
    class Floats(Difference):
        exact = True

        def forward(self, x1, x2):
            return x1 + self.run(self.f, x2), x2

        def inverse(self, y1, x2):
            return y1 - self.run(self.f, x2), x2

        def backward_step(self, rewind, outputs, grads, *args):
            (y1, x2), (d1, d2) = outputs, grads
            f = rewind.evaluate(self.f, x2, d1, *args)
            x1 = y1 - f.take_unrounded()
            return (x1, x2), (d1, rewind.add(d2, f.pull()))

    net = ReversibleSequence([Swap(), Floats(norm_block(4))], arithmetic="exact")
    with pytest.raises(ReversibleError, match=r"layer 1 \(Floats\): .* streams became floats"):
        net(input_tensor(2, 8, 8, 8)).sum().backward()


@pytest.mark.parametrize("case", ["tap", "single channel", "permutation", "lstm"])
def test_equal_to_the_bit_where_strides_or_shortcuts_could_differ(case):
    class Permuted(AdditiveCoupling):
        exact = True

        def forward(self, x1, x2):
            y1, y2 = super().forward(x1, x2)
            return y1.index_select(1, torch.tensor([2, 0, 3, 1])), y2

        def inverse(self, y1, y2):
            return super().inverse(y1.index_select(1, torch.tensor([1, 3, 0, 2])), y2)

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(4, 4, batch_first=True)

        def forward(self, x):
            return self.lstm(x.flatten(2).mT)[0].mT.unflatten(2, x.shape[2:])

    torch.manual_seed(0)
    layers = {
        "tap": [AdditiveCoupling(norm_block(4), norm_block(4)), Tap("t")],
        "single channel": [
            AdditiveCoupling(norm_block(2)),
            SplitSkip(),
            AdditiveCoupling(norm_block(1), norm_block(1)),
            JoinSkip(),
        ],
        "permutation": [Permuted(norm_block(4), norm_block(4)) for _ in range(3)],
        "lstm": [AdditiveCoupling(Tokens(), Tokens()) for _ in range(8)],
    }[case]
    net = ReversibleSequence(layers, arithmetic="exact")
    loss = (lambda out: weighted(out[1]["t"])) if case == "tap" else weighted
    layouts = [torch.contiguous_format, torch.channels_last]
    # In channels-last, `index_select` gives a contiguous gradient inside of the layer itself.
    for layout in layouts[:1] if case == "permutation" else layouts:
        x = torch.randn(2, 4 if case == "single channel" else 8, 7, 5)
        x = x.contiguous(memory_format=layout).requires_grad_()
        expect_equal(*against_plain(net, x, loss))


def test_a_loss_on_what_a_hook_kept_is_refused():
    net, kept = chain(2), []
    net[0].register_forward_hook(lambda m, args, out: kept.append(out[0]))
    net(input_tensor(2, 8, 8, 8))
    with pytest.raises(ReversibleError, match=r"layer 0 .* put a Tap there"):
        (kept[0] * 2).sum().backward()


def test_hooks_see_floats_and_may_not_change_streams():
    net, x = chain(1), input_tensor(2, 8, 8, 8)
    seen = {}
    layer = net[0]
    layer.register_forward_hook(lambda m, args, out: seen.update(forward=out[0].abs().max().item()))
    layer.register_full_backward_hook(lambda m, gi, go: seen.update(backward=(gi, go)))
    y = net(x)
    y.sum().backward()
    assert seen["forward"] == y[:, :4].abs().max().item()
    assert all(g.dtype == torch.float32 for pair in seen["backward"] for g in pair)
    handle = layer.register_forward_hook(lambda m, args, out: tuple(o + o for o in out))
    with pytest.raises(ReversibleError, match="a forward hook changed the output"):
        net(x)
    handle.remove()
    layer.register_forward_pre_hook(lambda m, args: args[0].zero_())
    with pytest.raises(ReversibleError, match="would write into a fixed-point stream"):
        net(x)


def test_sub_network_that_changes_its_input():
    net = ReversibleSequence([AdditiveCoupling(nn.ReLU(inplace=True))], arithmetic="exact")
    with pytest.raises(ReversibleError, match=r"layer 0 .* changed its input in place"):
        net(torch.randn(2, 4, 4, 4))


def test_half_precision_streams_keep_their_sums():
    """A network that is all bfloat16: its gradients are summed up in float32."""
    net, x = chain().bfloat16(), input_tensor(2, 8, 8, 8).detach().bfloat16()
    y = net(x)
    assert y.dtype == torch.bfloat16
    x = FixedPoint.from_float(x)
    with torch.no_grad():
        assert torch.equal(net.inverse(net(x)).integers, x.integers)


def test_inverse_of_forward_on_the_grid():
    net, x = chain(20), input_tensor(2, 8, 8, 8).detach()
    on_grid = FixedPoint.from_float(x).to_float()
    with torch.no_grad():
        assert torch.equal(net.inverse(net(FixedPoint.from_float(x))).to_float(), on_grid)
        y = net(x)
        if y.abs().max() < 16:  # all that float32 holds with 20 bits behind the point
            assert torch.equal(net.inverse(y), on_grid)
        net, x = net.double(), x.double()
        assert torch.equal(net.inverse(net(x)), FixedPoint.from_float(x).to_float())
        streams = x.chunk(2, 1)
        again = net.inverse(net(streams))
        expected = (FixedPoint.from_float(s).to_float() for s in streams)
        expect_equal(list(again), list(expected))


def test_options_are_checked():
    coupling = AdditiveCoupling(nn.Identity())
    for options, message in [
        ({"arithmetic": "fixed"}, r"arithmetic must be one of \('float', 'exact'\), not 'fixed'"),
        ({"check": True}, r"check must be one of \('async', 'sync'\), not True"),
        ({"fraction_bits": 40}, "fraction_bits must be 0 to 30, not 40"),
        ({"arithmetic": "exact", "anchor_every": 2}, "anchor_every must be None"),
    ]:
        with pytest.raises(ValueError, match=message):
            ReversibleSequence([coupling], **options)
    inner = ReversibleSequence([coupling], arithmetic="exact")
    with pytest.raises(ValueError, match="layer 0 is a sequence with arithmetic"):
        ReversibleSequence([inner])
    fixed = FixedPoint.from_float(torch.zeros(1, 2, 2, 2), 12)
    with pytest.raises(ValueError, match="input has fraction_bits=12, but the sequence has"):
        ReversibleSequence([coupling], arithmetic="exact")(fixed)
    with pytest.raises(TypeError, match='needs a sequence with arithmetic="exact"'):
        ReversibleSequence([coupling])(fixed)
    with pytest.raises(ReversibleError, match=r"complex64; exact arithmetic takes real floats"):
        ReversibleSequence([coupling], arithmetic="exact")(torch.zeros(1, 2, dtype=torch.cfloat))


def test_function_transforms_are_refused():
    net, x = chain(1), input_tensor(1, 8, 4, 4).detach()
    with pytest.raises(ReversibleError, match="do not know fixed-point"):
        torch.func.grad(lambda x: net(x).sum())(x)
    with pytest.raises(ReversibleError, match="do not know fixed-point"):
        torch.func.jvp(net, (x,), (x,))


def test_memory_is_that_of_float_arithmetic_and_half_an_activation(monkeypatch):
    """Asserted in bytes: the sub-network's float input is what exactness adds."""
    monkeypatch.setattr(grid, "_PIECE", 2**10)

    def above(arithmetic, depth):
        net = chain(depth)
        net.arithmetic = arithmetic
        x = torch.randn(1, 8, 64, 64, requires_grad=True)
        dy = torch.randn_like(x)
        report = measure(lambda: net(x).backward(dy), net)
        return report.peak_without_scratch - report.parameters - report.gradients, x.nbytes

    shallow, activation = above("exact", 2)
    deep, _ = above("exact", 12)
    base, _ = above("float", 12)
    # Bounds of the range, a scalar each, and the last gradients on their way.
    assert abs(deep - shallow) < 0.05 * activation
    assert 0.4 * activation < deep - base < 0.6 * activation


def test_memory_report_names_who_stores():
    net = ReversibleSequence(
        [AdditiveCoupling(norm_block(4)), Affine(norm_block(4)), AdditiveCoupling(norm_block(4))],
        arithmetic="exact",
    )
    x = torch.randn(1, 8, 32, 32, requires_grad=True)
    report = measure(lambda: net(x).sum().backward(), net)
    assert report.stored_by == {"layer 1 (Affine)": x.nbytes}
    assert "    by layer 1 (Affine)" in str(report)
    assert report.stored_by["layer 1 (Affine)"] <= report.kept_for_backward
    net.arithmetic = "float"
    assert measure(lambda: net(x).sum().backward(), net).stored_by == {}
    net.anchor_every = 2
    assert set(measure(lambda: net(x).sum().backward(), net).stored_by) == {"layer 1 (Affine)"}
