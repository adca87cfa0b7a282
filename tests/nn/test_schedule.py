"""Any schedule has the gradients of ordinary autograd, and the memory that it promises."""

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from revgrad import (
    AdditiveCoupling,
    HaarDownsample,
    HaarUpsample,
    JoinSkip,
    ReversibleError,
    ReversibleLayer,
    ReversibleSequence,
    SplitSkip,
    Tap,
    check_reconstruction,
    is_recomputing,
)
from revgrad.memory import measure
from revgrad.nn import fuse

from . import test_composition as floats
from . import test_exact as exact

WAYS = ("invert", "recompute", "store")
MIXED = ["store", "invert", "recompute", "store", "recompute", "invert", "store", "invert"]


def drawn_ways():
    return st.lists(st.sampled_from(WAYS), min_size=60, max_size=60)


def places(net):
    return [place for place, _ in net._named_layers()]


def scheduled(net, ways):
    net.schedule = dict(zip(places(net), ways, strict=False))
    return net


# --- against ordinary autograd ------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    kinds=st.lists(
        st.sampled_from(["two", "one", "generic", "swap", "down", "up", "split", "join"]),
        min_size=1,
        max_size=12,
    ),
    ways=drawn_ways(),
    sub=st.sampled_from(sorted(floats.SUB_NETWORKS)),
    channels=st.integers(2, 5),
    channels_last=st.booleans(),
    anchor_every=st.sampled_from([None, None, 2]),
    nested=st.booleans(),
    twice=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_schedule_of_any_composition(
    kinds, ways, sub, channels, channels_last, anchor_every, nested, twice, seed
):
    torch.manual_seed(seed)
    layers = floats.compose(kinds, channels, floats.SUB_NETWORKS[sub])
    if nested and len(layers) > 2:
        layers = [layers[0], ReversibleSequence(layers[1:-1], anchor_every=2), layers[-1]]
    net = scheduled(ReversibleSequence(layers, anchor_every=anchor_every), ways)
    x = torch.randn(2, 2 * channels, 8, 8, dtype=torch.float64)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    twin = copy.deepcopy(net)
    twin.save_memory = False
    assert twin.schedule == net.schedule
    found, expected = gradients(net, x, seed, twice), gradients(twin, x, seed, twice)
    for a, b in zip(expected, found, strict=True):
        assert (a is None and b is None) or (a - b).abs().max() <= 1e-8 * (1 + a.abs().max())


def gradients(net, x, seed, twice=False):
    """Output, all gradients, buffers and a number drawn afterwards; of two backward passes."""
    x = x.clone().requires_grad_()
    torch.manual_seed(seed)
    y = net(x)
    loss = (y.sin() * torch.linspace(1, 2, y.numel(), dtype=y.dtype).view_as(y)).sum()
    if twice:
        loss.backward(retain_graph=True)
    loss.backward()
    after = torch.rand(1, dtype=x.dtype)
    return [y.detach(), x.grad, *(p.grad for p in net.parameters()), *net.buffers(), after]


@settings(max_examples=60, deadline=None)
@given(
    kinds=st.lists(
        st.sampled_from(["two", "two", "one", "swap", "haar", "shuffle", "split", "close"]),
        min_size=1,
        max_size=12,
    ),
    ways=drawn_ways(),
    sub=st.sampled_from(sorted(exact.SUB_NETWORKS)),
    batch=st.integers(1, 2),
    dtype=st.sampled_from(["float32", "bfloat16", "autocast"]),
    channels_last=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_exact_arithmetic_stays_equal_to_the_bit(
    kinds, ways, sub, batch, dtype, channels_last, seed
):
    torch.manual_seed(seed)
    autocast = dtype == "autocast"
    kind = torch.float32 if autocast else getattr(torch, dtype)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    steps = exact.compose(kinds, 4, exact.SUB_NETWORKS[sub])
    net = scheduled(exact.network(steps).to(kind), ways)
    x, dy = (
        torch.randn(batch, 8, 8, 8).to(kind).contiguous(memory_format=layout) for _ in range(2)
    )
    twin = copy.deepcopy(net)
    twin.save_memory = False
    found = exact.run(net, net.parameters(), x, dy, autocast, seed)
    expected = exact.run(twin, twin.parameters(), x, dy, autocast, seed)
    exact.expect_equal(found, expected)
    exact.expect_equal(list(net.buffers()), list(twin.buffers()))


@pytest.mark.parametrize("way", WAYS)
def test_a_layer_without_an_exact_form(way):
    torch.manual_seed(0)
    block = exact.norm_block
    first, last = AdditiveCoupling(block(4)), AdditiveCoupling(block(4), block(4))
    layers = [first, exact.Affine(block(4)), last]
    net = ReversibleSequence(layers, arithmetic="exact", schedule=["invert", way, "invert"])
    exact.expect_equal(*exact.against_plain(net, exact.input_tensor(2, 8, 8, 8), exact.weighted))


def conditioned(c):
    return Conditioned(c).double()


class Conditioned(nn.Module):
    """Dropout, batch norm and a side input."""

    def __init__(self, c):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c), nn.Dropout(0.3), nn.SiLU()
        )

    def forward(self, x, scale, *, shift):
        return self.body(x) * scale + shift["b"]


def unet(block):
    torch.manual_seed(0)
    head = nn.Conv2d(16, 3, 1).double()
    return ReversibleSequence(
        [
            AdditiveCoupling(block(4), block(4)),
            Tap("fine"),
            SplitSkip(),
            HaarDownsample(2),
            ReversibleSequence([AdditiveCoupling(block(8)), Tap("coarse", head)]),
            AdditiveCoupling(block(8)),
            HaarUpsample(2),
            JoinSkip(),
            AdditiveCoupling(block(4)),
        ]
    )


@settings(max_examples=40, deadline=None)
@given(ways=drawn_ways(), use=st.sampled_from(["all", "output", "tap", "head"]))
def test_side_inputs_taps_and_skips(ways, use):
    x = torch.randn(2, 8, 8, 8, dtype=torch.float64)
    results = []
    for save_memory in (False, True):
        net = scheduled(unet(conditioned), ways)
        net.save_memory = save_memory
        leaf = x.clone().requires_grad_()
        scale, shift = (
            torch.full((1,), v, dtype=torch.float64, requires_grad=True) for v in (0.7, 0.2)
        )
        torch.manual_seed(3)
        y, taps = net(leaf, scale, shift={"b": shift})
        assert list(taps) == ["fine", "coarse"]
        used = {
            "all": lambda y, t: y.sin().sum() + t["fine"].cos().sum() + t["coarse"].sin().sum(),
            "output": lambda y, t: y.sin().sum(),
            "tap": lambda y, t: t["fine"].sin().sum(),
            "head": lambda y, t: t["coarse"].sin().sum(),
        }[use](y, taps)
        used.backward()
        leaves = [leaf, scale, shift, *net.parameters()]
        results.append([y.detach(), *(t.grad for t in leaves), *net.buffers()])
    for a, b in zip(*results, strict=True):
        # A node of a tape has no gradient, or zero, for what autograd does not reach.
        a, b = (torch.zeros(()) if t is None else t for t in (a, b))
        assert (a - b).abs().max() <= 1e-10 * max(a.abs().max(), 1)


@pytest.mark.parametrize("arithmetic", ["float", "exact"])
def test_taps_in_exact_arithmetic_and_one_loss_after_the_other(arithmetic):
    """Values that were tapped before, in and behind stored layers."""
    torch.manual_seed(0)
    layers = [layer for i in range(4) for layer in (coupling(), Tap(f"t{i}"))]
    ways = ["invert", "invert", "store", "store", "invert", "recompute", "store", "invert"]
    net = ReversibleSequence(layers, arithmetic=arithmetic, schedule=ways)
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    results = []
    for save_memory in (True, False):
        net.save_memory = save_memory
        net.zero_grad()
        y, taps = net(x)
        assert list(taps) == ["t0", "t1", "t2", "t3"]
        for value in (taps["t2"], taps["t0"], y, taps["t3"], taps["t1"]):
            value.sin().sum().backward(retain_graph=True)
        results.append([p.grad.clone() for p in net.parameters()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def coupling(c=2):
    body = nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.InstanceNorm2d(c), nn.Tanh())
    return AdditiveCoupling(body)


def small():
    return nn.Sequential(nn.Conv1d(1, 1, 3, padding=1), nn.Tanh())


@pytest.mark.parametrize(
    "ways",
    [
        ["invert", "store", "invert"],
        ["store", "invert", "store"],
        ["recompute", "invert", "recompute"],
        ["invert", "recompute", "store"],
        ["recompute"] * 3,
    ],
    ids="-".join,
)
def test_gradcheck_and_gradgradcheck(ways):
    torch.manual_seed(0)
    layers = [AdditiveCoupling(small(), small()), AdditiveCoupling(small()), generic(small())]
    net = ReversibleSequence(layers, schedule=ways).double()
    names = [n for n, _ in net.named_parameters()]

    def run(x, *parameters):
        return torch.func.functional_call(net, dict(zip(names, parameters, strict=True)), (x,))

    parameters = [p.detach().requires_grad_() for p in net.parameters()]
    x = torch.randn(1, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, *parameters))
    assert torch.autograd.gradgradcheck(run, (x, *parameters))


def generic(sub):
    return floats.Scaled(sub)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("ways", [MIXED, ["recompute"] * 8], ids=["mixed", "recompute"])
def test_autocast_and_fused_tails(fused, ways):
    """Streams are float32; the parts of ordinary autograd share autocast's cache with others."""

    def block():
        made = nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1), nn.InstanceNorm2d(4, affine=True), nn.SiLU()
        )
        if fused:
            fuse(made)
        return made

    torch.manual_seed(0)
    shared = block()
    layers = [AdditiveCoupling(block() if i % 3 else shared) for i in range(8)]
    net = ReversibleSequence(layers, schedule=ways)
    x = torch.randn(2, 8, 16, 16)
    results = []
    for save_memory in (True, False):
        net.save_memory = save_memory
        net.zero_grad()
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = net(leaf)
        assert y.dtype == torch.float32
        y.square().mean().backward()
        results.append([leaf.grad, *(p.grad for p in net.parameters())])
    for a, b in zip(*results, strict=True):
        assert (a - b).norm() <= 2e-2 * b.norm() + 1e-6


def test_shared_layers_have_a_way_for_each_place():
    torch.manual_seed(0)
    layer = AdditiveCoupling(small(), small())
    inner = ReversibleSequence([layer, AdditiveCoupling(small())])
    net = ReversibleSequence([layer, inner, layer, inner]).double()
    net.schedule = {0: "store", "1.1": "store", 2: "recompute", "3": "store"}
    x = torch.randn(2, 2, 8, dtype=torch.float64)
    found = gradients(net, x, 0)
    net.save_memory = False
    net.zero_grad()
    for a, b in zip(found, gradients(net, x, 0), strict=True):
        torch.testing.assert_close(a, b)


class Writing(ReversibleLayer):
    """Its step back writes into its outputs, which the protocol allows."""

    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x1, x2):
        return x1 + self.run(self.f, x2), x2

    def inverse(self, y1, y2):
        return y1 - self.run(self.f, y2), y2

    def backward_step(self, rewind, outputs, grads):
        (y1, x2), (d1, d2) = outputs, grads
        f = rewind.evaluate(self.f, x2, d1)
        y1.sub_(f.take_value())
        return (y1, x2), (d1, rewind.add(d2, f.pull()))


@pytest.mark.parametrize("way", ["recompute", "store"])
def test_a_step_back_that_writes_can_be_repeated(way):
    """What is stored for a layer is not what the one before it writes into."""
    torch.manual_seed(0)
    net = ReversibleSequence([Writing(small()), Writing(small()), coupling1d()]).double()
    net.schedule = {2: way}
    x = torch.randn(2, 2, 8, dtype=torch.float64)
    found = gradients(net, x, 0, twice=True)
    net.save_memory = False
    net.zero_grad()
    for a, b in zip(found, gradients(net, x, 0, twice=True), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def coupling1d():
    return AdditiveCoupling(small())


# --- what runs, and what surrounds it -----------------------------------------------------------


def test_how_often_each_sub_network_runs():
    net = ReversibleSequence([coupling() for _ in range(8)], schedule=MIXED)
    first, again = [], []

    def count(module, args, output):
        (again if is_recomputing() else first).append(module)

    for layer in net:
        layer.f.register_forward_hook(count)
    net(torch.randn(1, 4, 8, 8, requires_grad=True)).sum().backward()
    assert first == [layer.f for layer in net]
    assert again == [net[i].f for i in reversed(range(8)) if MIXED[i] != "store"]


def test_a_generic_layer_is_evaluated_once_more_than_it_must_if_inverted():
    counts = {}
    for way in WAYS:
        layer = generic(nn.Conv1d(1, 1, 1).double())
        calls = []
        layer.f.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        net = ReversibleSequence([coupling1d().double(), layer], schedule=["invert", way])
        net(torch.randn(1, 2, 4, dtype=torch.float64)).sum().backward()
        counts[way] = len(calls)
    assert counts == {"invert": 3, "recompute": 2, "store": 1}


def test_recomputing_from_the_stored_input_does_not_drift():
    torch.manual_seed(0)
    net = ReversibleSequence([coupling() for _ in range(12)], schedule="recompute")
    x = torch.randn(1, 4, 8, 8, requires_grad=True)
    with check_reconstruction() as check:
        net(x).sum().backward()
    assert set(check.deviations.values()) == {0.0}
    net.schedule = "invert"
    with check_reconstruction() as check:
        net(x).sum().backward()
    assert max(check.deviations.values()) > 0


def test_an_error_inside_names_the_layer_and_leaves_nothing_behind():
    class Failing(nn.Module):
        fails = False

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 1)

        def forward(self, x):
            if self.fails and is_recomputing():
                raise ValueError("on the way back")
            return self.conv(x)

    torch.manual_seed(0)
    net = ReversibleSequence([AdditiveCoupling(Failing()) for _ in range(8)], schedule=MIXED)
    x = torch.randn(1, 4, 8, 8, requires_grad=True)
    expected = torch.autograd.grad(net(x).sin().sum(), net.parameters())
    for i in (1, 2, 7):
        net[i].f.fails = True
        with pytest.raises(ValueError, match="on the way back") as caught:
            net(x).sin().sum().backward()
        assert any(f"layer {i} (AdditiveCoupling)" in note for note in caught.value.__notes__)
        net[i].f.fails = False
        again = torch.autograd.grad(net(x).sin().sum(), net.parameters())
        assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))


def test_parameters_changed_before_backward_are_refused_whatever_the_way():
    for way in WAYS:
        net = ReversibleSequence([coupling() for _ in range(3)], schedule=["invert", way, "invert"])
        loss = net(torch.randn(1, 4, 8, 8, requires_grad=True)).sum()
        with torch.no_grad():
            net[1].f[0].weight.mul_(2)
        with pytest.raises(RuntimeError, match=r"in ?place"):
            loss.backward()


def test_hooks_of_layers_and_gradients_of_parameters_come_as_in_ordinary_autograd():
    torch.manual_seed(0)
    net = ReversibleSequence([coupling() for _ in range(8)], schedule=MIXED)
    seen = []
    for i, layer in enumerate(net):
        layer.register_forward_hook(lambda *_, i=i: seen.append(("forward", i)))
        layer.f[0].weight.register_post_accumulate_grad_hook(
            lambda *_, i=i: seen.append(("gradient", i))
        )
    net(torch.randn(1, 4, 8, 8, requires_grad=True)).sum().backward()
    assert seen == [
        *(("forward", i) for i in range(8)),
        *(("gradient", i) for i in reversed(range(8))),
    ]


def test_frozen_layers_and_inputs_without_gradient():
    torch.manual_seed(0)
    net = ReversibleSequence([coupling() for _ in range(8)], schedule=MIXED).double()
    for i in (0, 1, 4):
        net[i].requires_grad_(False)
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    results = []
    for save_memory in (True, False):
        net.save_memory = save_memory
        net.zero_grad()
        net(x).sin().sum().backward()
        results.append([p.grad for p in net.parameters()])
    for a, b in zip(*results, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


def test_a_gradient_for_a_part_of_the_parameters():
    torch.manual_seed(0)
    net = ReversibleSequence([coupling() for _ in range(8)], schedule=MIXED).double()
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    for i in range(8):
        weight = net[i].f[0].weight
        net.save_memory = True
        found = torch.autograd.grad(net(x).sin().sum(), weight)[0]
        net.save_memory = False
        torch.testing.assert_close(found, torch.autograd.grad(net(x).sin().sum(), weight)[0])


def test_the_inverse_does_not_depend_on_the_schedule():
    torch.manual_seed(0)
    net = ReversibleSequence([coupling() for _ in range(8)], schedule=MIXED).double()
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(net.inverse(net(x)), x)


# --- memory -------------------------------------------------------------------------------------


def peak(net, x, dy):
    def step():
        x.grad = None
        net(x).backward(dy)

    return measure(step, net)


def sequence(schedule="invert", depth=8, c=8, **options):
    torch.manual_seed(0)

    def block():
        return nn.Sequential(
            nn.Conv2d(c, c, 3, padding=1), nn.InstanceNorm2d(c, affine=True), nn.LeakyReLU(0.01)
        )

    layers = [AdditiveCoupling(block(), block()) for _ in range(depth)]
    return ReversibleSequence(layers, schedule=schedule, **options)


@pytest.mark.parametrize("arithmetic", ["float", "exact"])
def test_peaks_of_all_stored_and_all_inverted_to_the_byte(arithmetic):
    x = torch.randn(1, 16, 32, 32, requires_grad=True)
    dy = torch.randn(1, 16, 32, 32)
    nothing = peak(sequence(arithmetic=arithmetic), x, dy).peak
    plain = peak(sequence(save_memory=False, arithmetic=arithmetic), x, dy).peak
    assert peak(sequence(["invert"] * 8, arithmetic=arithmetic), x, dy).peak == nothing
    assert peak(sequence(["store"] * 8, arithmetic=arithmetic), x, dy).peak == plain
    assert peak(sequence("store", arithmetic=arithmetic), x, dy).peak == plain
    assert nothing < plain / 2


def kept_by_forward(schedule):
    """Bytes that autograd keeps of a forward pass, besides parameters and the output."""
    net, x = sequence(schedule), torch.randn(2, 16, 32, 32)
    kept = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor.detach()  # with its history it would hold the graph that holds it

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = net(x)
    for known in (y, *net.parameters()):
        kept.pop(known.data_ptr(), None)
    return sum(kept.values())


def test_what_a_forward_pass_keeps():
    stream = 2 * 8 * 32 * 32 * 4
    norms = 2 * 4 * 2 * 2 * 8 * 4  # bytes at most: mean and deviation of two norms, and copies
    stored = [kept_by_forward(["invert"] * (8 - n) + ["store"] * n) for n in range(8)]
    assert stored[0] == 0
    for fewer, more in pairwise(stored[1:]):
        # Of each of the two sub-networks its input and the results of convolution and norm.
        assert 0 <= more - fewer - 6 * stream <= norms
    # Where a tape ends there is also the stream that is no sub-network's input.
    assert 0 <= stored[1] - 7 * stream <= norms
    # The first layers stand on no tape.
    assert 0 <= kept_by_forward(["store"] * 2 + ["invert"] * 6) - 12 * stream <= 2 * norms
    # A layer's own input and, between its two sub-networks, one stream more.
    assert kept_by_forward({3: "recompute"}) == 3 * stream
    # The second of two has the input that the first one made.
    assert kept_by_forward({3: "recompute", 4: "recompute"}) == 5 * stream


def test_what_is_recomputed_is_in_the_report():
    x = torch.randn(2, 16, 32, 32, requires_grad=True)
    report = peak(sequence({i: "recompute" for i in range(3)}), x, torch.ones(2, 16, 32, 32))
    assert list(report.stored_by) == [f"layer {i} (AdditiveCoupling)" for i in range(3)]


# --- the argument -------------------------------------------------------------------------------


def test_forms_of_a_schedule():
    net = sequence(depth=3)
    assert net.schedule == "invert"
    net.schedule = ["store", "invert", "recompute"]
    assert net.schedule == {"0": "store", "1": "invert", "2": "recompute"}
    assert "schedule={'0': 'store'" in repr(net)
    net.schedule = {1: "store"}
    assert net.schedule == {"1": "store"}
    net.layers.append(coupling(8))
    assert copy.deepcopy(net).schedule == {"1": "store"}
    assert net._ways.of("3") == "invert"


@pytest.mark.parametrize(
    ("schedule", "error", "message"),
    [
        ("keep", ValueError, "must be one of .*not 'keep'"),
        (["store"], ValueError, "has 1 ways, but the sequence has 3 layers"),
        ({7: "store"}, ValueError, r"ways for \['7'\], but .* 0, 1, 2"),
        ({1: "keep"}, ValueError, "for layer 1, not 'keep'"),
        (3, TypeError, "not int"),
    ],
)
def test_schedules_that_are_none(schedule, error, message):
    with pytest.raises(error, match=message):
        sequence(schedule, depth=3)


def test_of_inner_sequences_the_outermost_decides():
    inner = ReversibleSequence([coupling(), coupling()], schedule="store")
    net = ReversibleSequence([coupling(), inner])
    assert [net._ways.of(place) for place, _ in net._named_layers()] == ["invert"] * 3
    net.schedule = {"1": "store", "1.0": "recompute"}
    assert [net._ways.of(place) for place, _ in net._named_layers()] == [
        "invert", "recompute", "store",
    ]  # fmt: skip


def test_nothing_to_save_is_nothing_to_schedule():
    net = ReversibleSequence([coupling() for _ in range(8)], schedule=MIXED)
    x = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        assert not net(x).requires_grad
    _, tangent = torch.func.jvp(net, (x,), (torch.ones_like(x),))
    assert tangent.shape == x.shape


def test_dropout_under_a_schedule_draws_as_ordinary_autograd_does():
    torch.manual_seed(0)
    layers = [
        AdditiveCoupling(nn.Sequential(nn.Conv2d(2, 2, 1), nn.Dropout(0.5))) for _ in range(8)
    ]
    net = ReversibleSequence(layers, schedule=MIXED).double()
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    found = gradients(net, x, 5)
    net.save_memory = False
    net.zero_grad()
    for a, b in zip(found, gradients(net, x, 5), strict=True):
        torch.testing.assert_close(a, b)


def test_an_output_changed_in_place_before_the_tape_starts_is_refused():
    net = ReversibleSequence([coupling() for _ in range(3)], schedule=["store", "store", "invert"])
    y = net(torch.randn(1, 4, 8, 8, requires_grad=True))
    y.mul_(1)
    with pytest.raises(ReversibleError, match="changed in place"):
        y.sum().backward()


def test_layers_deleted_from_a_sequence_with_a_schedule():
    """What is left of the schedule can be read and given again."""
    net = ReversibleSequence([AdditiveCoupling(nn.Identity()) for _ in range(4)])
    net.schedule = ["store", "invert", "recompute", "store"]
    del net.layers[1:3]
    assert net.schedule == {"0": "store", "1": "invert"}
    net.schedule = net.schedule
    net(torch.ones(1, 4, 2, 2, requires_grad=True)).sum().backward()
    del net.layers[:]
    net.schedule = net.schedule
    assert net.schedule == {}
