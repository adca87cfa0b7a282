"""Log-determinants of sequences: against the Jacobian, and their gradients on the tape."""

import random
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import revgrad
from revgrad import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    ChannelMixing,
    HaarDownsample,
    HaarUpsample,
    Invertible1x1Conv,
    JoinSkip,
    OrthogonalDownsample,
    PixelShuffleDownsample,
    ReversibleError,
    ReversibleLayer,
    ReversibleSequence,
    SplitSkip,
    Tap,
)
from revgrad.memory import live_bytes, measure

from .flows import (
    DOUBLE,
    calm,
    expect_same,
    glow,
    gradients,
    jacobian_logdet,
    likelihood,
    multi_scale,
    relative_errors,
    sequence,
    sub,
)


class Scaled(ReversibleLayer):
    """The layer of the documentation: no step back of its own."""

    gives_logdet = True

    def __init__(self, f=None):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(0.3))

    def forward(self, x1, x2, *args, logdet=False):
        outputs = x1 * self.log_scale.exp(), x2
        return (*outputs, self._logdet(x1)) if logdet else outputs

    def inverse(self, y1, y2, *args, logdet=False):
        inputs = y1 * (-self.log_scale).exp(), y2
        return (*inputs, -self._logdet(y1)) if logdet else inputs

    def _logdet(self, x):
        return (self.log_scale * x[0].numel()).expand(len(x))


# --- right --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["tanh", "atan", "sigmoid"])
def test_a_multi_scale_flow(scale):
    torch.manual_seed(0)
    net = sequence(multi_scale(scale))
    x = torch.randn(2, 4, 4, 4, dtype=DOUBLE)
    y, logdet = net(x, logdet=True)
    assert logdet.shape == (2,)
    assert (logdet - jacobian_logdet(net, x)).abs().max() < 1e-10
    again, back = net.inverse(y, logdet=True)
    assert (again - x).abs().max() < 1e-10
    assert (back + logdet).abs().max() < 1e-10
    expect_same(net, x)


KINDS = {
    "affine": lambda: AffineCoupling(sub(2, hidden=3), sub(2, hidden=3)),
    "affine of one": lambda: AffineCoupling(sub(2, hidden=3), scale="sigmoid"),
    "additive": lambda: AdditiveCoupling(nn.Conv2d(2, 2, 3, padding=1)),
    "actnorm": lambda: glow(1)[0],
    "conv": lambda: Invertible1x1Conv(4),
    "mixing": lambda: ChannelMixing(4, init="random"),
    "own": Scaled,
    "tap": lambda: Tap(f"tap {torch.randint(10**9, ()).item()}"),
    "scales": lambda: ReversibleSequence([HaarDownsample(2), Scaled(), HaarUpsample(2)]),
    "skip": lambda: ReversibleSequence(
        [SplitSkip(), AffineCoupling(nn.Conv2d(1, 2, 1)), Scaled(), JoinSkip()]
    ),
}


@settings(max_examples=30, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=8),
    anchor_every=st.sampled_from([None, None, 2]),
    channels_last=st.booleans(),
    nested=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_composition(kinds, anchor_every, channels_last, nested, seed):
    torch.manual_seed(seed)
    layers = [KINDS[kind]() for kind in kinds]
    if nested:
        layers = [*layers[:1], ReversibleSequence(layers[1:])]
    net = sequence(layers, anchor_every=anchor_every)
    x = torch.randn(2, 4, 2, 2, dtype=DOUBLE)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    expect_same(net, x)
    y, logdet = net(x, logdet=True)[:2]
    taken = _Untapped(net) if "tap" in kinds else net
    assert (logdet - jacobian_logdet(taken, x)).abs().max() < 1e-9
    again, back = net.inverse(y, logdet=True)
    assert (again - x).abs().max() < 1e-9
    assert (back + logdet).abs().max() < 1e-9


class _Untapped:
    def __init__(self, net):
        self.net = net

    def __call__(self, x):
        return self.net(x)[0]


def test_float64_gradients_of_a_deep_flow():
    torch.manual_seed(0)
    net = calm(sequence(glow(45)))
    expect_same(net, torch.randn(2, 4, 4, 4, dtype=DOUBLE), tolerance=1e-9)


def test_layers_of_volume_one_contribute_zero():
    layers = [
        AdditiveCoupling(nn.Conv2d(2, 2, 1)),
        ChannelMixing(4, init="random"),
        SplitSkip(),
        OrthogonalDownsample(2, 2),
        PixelShuffleDownsample(2),
    ]
    net = ReversibleSequence(layers)
    x = torch.randn(3, 4, 4, 4)
    outputs, logdet = net(x.chunk(2, 1), logdet=True)
    assert torch.equal(logdet, torch.zeros(3))
    inputs, back = net.inverse(outputs, logdet=True)
    assert torch.equal(back, torch.zeros(3))
    assert (torch.cat(inputs, 1) - x).abs().max() < 1e-5
    # nothing of it depends on anything, but it may stand in a loss
    (logdet.sum() + outputs[0].sum()).backward()


def test_streams_given_as_a_tuple_and_latents_that_wait():
    """A multi-scale flow: what is split off at one scale is a latent."""
    torch.manual_seed(0)
    net = sequence([*glow(1), SplitSkip(), HaarDownsample(2), *glow(1, 8)])
    streams = torch.randn(2, 2, 2, 4, 4, dtype=DOUBLE).unbind()
    results = []
    for net.save_memory in (True, False):
        net.zero_grad()
        outputs, logdet = net(streams, logdet=True)
        likelihood(torch.cat([z.flatten(1) for z in outputs], 1), logdet).backward()
        results.append([*outputs, logdet, *(p.grad.clone() for p in net.parameters())])
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() <= 1e-10 * (1 + b.abs().max())

    def flat(x):
        latents = net(tuple(x.chunk(2, 1)))
        return (torch.cat([z.flatten() for z in latents]),)

    expected = jacobian_logdet(flat, torch.cat(streams, 1))
    assert (logdet - expected).abs().max() < 1e-10


def test_taps_come_behind_and_are_what_they_were():
    torch.manual_seed(0)
    layers = glow(2)
    net = sequence([*layers[:3], Tap("plain"), Tap("head", nn.Conv2d(4, 1, 1)), *layers[3:]])
    x = torch.randn(2, 4, 3, 3, dtype=DOUBLE)
    results = []
    for net.save_memory in (True, False):
        net.zero_grad()
        y, logdet, taps = net(x, logdet=True)
        loss = likelihood(y, logdet) + taps["head"].sin().sum() + taps["plain"].square().sum()
        loss.backward()
        plain_y, plain_taps = net(x)
        assert torch.equal(plain_y, y)
        assert list(plain_taps) == list(taps) == ["plain", "head"]
        results.append([*taps.values(), *(p.grad.clone() for p in net.parameters())])
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() <= 1e-10 * (1 + b.abs().max())


@pytest.mark.parametrize("wanted", ["y", "logdet", "one after the other"])
def test_either_result_alone(wanted):
    torch.manual_seed(0)
    net = sequence([*glow(2), *glow(1, one=True)])
    x = torch.randn(2, 4, 3, 3, dtype=DOUBLE, requires_grad=True)
    results = []
    for net.save_memory in (True, False):
        net.zero_grad()
        x.grad = None
        y, logdet = net(x, logdet=True)
        if wanted != "logdet":
            y.sin().sum().backward(retain_graph=True)
        if wanted != "y":
            logdet.square().sum().backward()
        results.append([x.grad, *(p.grad for p in net.parameters())])
    for a, b in zip(*results, strict=True):
        if a is None or b is None:  # ordinary autograd has none, or zeros
            assert (a if b is None else b) is None or not (a if b is None else b).any()
            continue
        assert (a - b).abs().max() <= 1e-10 * (1 + b.abs().max())


def test_gradcheck_and_gradgradcheck():
    torch.manual_seed(0)
    net = sequence([*glow(1, hidden=2), Scaled(), Tap("t", nn.Conv2d(4, 1, 1))])
    names = [n for n, _ in net.named_parameters()]

    def run(x, *parameters):
        values = dict(zip(names, parameters, strict=True))
        y, logdet, taps = torch.func.functional_call(net, values, (x,), {"logdet": True})
        return y, logdet, taps["t"]

    leaves = [torch.randn(2, 4, 2, 2, dtype=DOUBLE), *net.parameters()]
    leaves = [t.detach().requires_grad_() for t in leaves]
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


def test_double_backward_against_ordinary_autograd():
    torch.manual_seed(0)
    net = sequence(glow(4))
    x = torch.randn(2, 4, 3, 3, dtype=DOUBLE, requires_grad=True)
    results = []
    for net.save_memory in (True, False):
        net.zero_grad()
        y, logdet = net(x, logdet=True)
        (score,) = torch.autograd.grad(likelihood(y, logdet), x, create_graph=True)
        score.square().sum().backward()
        results.append([score.detach(), *(p.grad.clone() for p in net.parameters())])
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() <= 1e-9 * (1 + b.abs().max())


def test_torch_func():
    torch.manual_seed(0)
    net = sequence(glow(2))
    x = torch.randn(3, 4, 3, 3, dtype=DOUBLE)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(net(leaf, logdet=True)[1].sum(), leaf)
    assert (
        torch.func.grad(lambda v: net(v, logdet=True)[1].sum())(x) - expected
    ).abs().max() < 1e-12
    by_sample = torch.func.vmap(torch.func.grad(lambda v: net(v[None], logdet=True)[1].sum()))(x)
    assert (by_sample - expected).abs().max() < 1e-12
    _, tangent = torch.func.jvp(lambda v: net(v, logdet=True)[1], (x,), (x,))
    assert (tangent - (expected * x).flatten(1).sum(1)).abs().max() < 1e-11


@pytest.mark.parametrize("arithmetic", ["float", "exact"])
def test_in_either_arithmetic(arithmetic):
    torch.manual_seed(0)
    layers = [AdditiveCoupling(nn.Conv2d(2, 2, 1)), *glow(1), Scaled(), HaarDownsample(2)]
    net = sequence(layers, arithmetic=arithmetic)
    x = torch.randn(2, 4, 4, 4, dtype=DOUBLE)
    expect_same(net, x, tolerance=1e-10 if arithmetic == "float" else 1e-12)
    y, logdet = net(x, logdet=True)
    again, back = net.inverse(y, logdet=True)
    assert (again - x).abs().max() < 1e-4
    assert (back + logdet).abs().max() < 1e-4


def test_exact_streams_that_leave_their_range_make_the_logdet_known():
    net = ReversibleSequence(glow(1), arithmetic="exact", fraction_bits=28)
    with pytest.raises(ReversibleError):
        net(1e4 * torch.randn(2, 4, 4, 4), logdet=True)


def test_maximum_likelihood_of_a_gaussian_finds_its_mean_and_deviation():
    """A closed form: the best affine map of a normal variable is its standardisation."""
    torch.manual_seed(0)
    x = 3 * torch.randn(512, 2, dtype=DOUBLE) + torch.tensor([1.0, -2.0], dtype=DOUBLE)
    net = sequence([ActNorm(2)])
    net[0].initialised.fill_(True)
    optimizer = torch.optim.Adam(net.parameters(), 0.05)
    for _ in range(400):
        optimizer.zero_grad()
        z, logdet = net(x, logdet=True)
        (z.square().sum(1) / 2 - logdet).mean().backward()
        optimizer.step()
    deviation = x.std(0, unbiased=False)
    assert (net[0].log_scale + deviation.log()).abs().max() < 1e-3
    assert (net[0].shift + x.mean(0) / deviation).abs().max() < 1e-3


def test_float32_drift_of_a_flow_is_small():
    torch.manual_seed(0)
    net = calm(ReversibleSequence(glow(16)))
    x = torch.randn(2, 4, 8, 8)
    results = []
    for net.save_memory in (True, False):
        results.append([None if t is None else t.clone() for t in gradients(net, x)])
    exact = gradients(net.double(), x.double())
    found, plain = (relative_errors(r, exact) for r in results)
    assert found < 1e-4
    assert found < 30 * plain


def test_hooks_run_and_several_threads_do_not_meet():
    torch.manual_seed(0)
    net = sequence(glow(2))
    seen = []
    net[2].register_forward_hook(lambda m, a, out: seen.append([tuple(o.shape) for o in out]))
    x = torch.randn(2, 4, 3, 3, dtype=DOUBLE)
    expect_same(net, x)
    assert seen == [[(2, 2, 3, 3), (2, 2, 3, 3), (2,)]] * 2
    weight = net[1].matrix.upper  # read here: in a step back another tensor stands there
    expected = [torch.autograd.grad(net(x, logdet=True)[1].sum(), weight)[0]] * 4
    found = []

    def work():
        (g,) = torch.autograd.grad(net(x, logdet=True)[1].sum(), weight)
        found.append(g)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)


def test_what_is_computed_back_is_close():
    torch.manual_seed(0)
    net = sequence(multi_scale())
    with revgrad.check_reconstruction() as check:
        y, logdet = net(torch.randn(2, 4, 4, 4, dtype=DOUBLE), logdet=True)
        likelihood(y, logdet).backward()
    assert len(check.deviations) == len(net)
    assert max(check.deviations.values()) < 1e-12


# --- memory -------------------------------------------------------------------------------------


def rest(depth, save_memory=True):
    """Bytes alive at the peak of a step, less parameters, gradients and buffers."""
    net = ReversibleSequence(glow(depth, 16), save_memory=save_memory)
    buffers = sum(b.untyped_storage().nbytes() for b in net.buffers())
    x, dy = torch.randn(2, 2, 16, 32, 32).unbind()

    def step():
        y, logdet = net(x, logdet=True)
        torch.autograd.backward((y, logdet), (dy, torch.ones(2)))

    report = measure(step, net)
    return report.peak - report.parameters - report.gradients - buffers


def test_memory_grows_with_depth_by_weights_only_to_the_byte():
    assert len({rest(depth) for depth in (2, 4, 12)}) == 1
    activation = 2 * 16 * 32 * 32 * 4
    assert rest(12, save_memory=False) - rest(4, save_memory=False) > 8 * 5 * activation


def test_nothing_is_stored_but_the_output_and_the_weights():
    net = ReversibleSequence(glow(3))
    owned = {p.data_ptr() for p in net.parameters()}
    stored = []

    def pack(tensor):
        stored.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y, _ = net(torch.randn(2, 4, 8, 8), logdet=True)
    assert [t.data_ptr() for t in stored if t.data_ptr() not in owned] == [y.data_ptr()]


def test_a_step_leaves_nothing_behind():
    net = ReversibleSequence(glow(2))
    x = torch.randn(2, 4, 8, 8)

    def step():
        y, logdet = net(x, logdet=True)
        (y.sum() + logdet.sum()).backward()
        net.zero_grad()

    step()
    before = live_bytes()
    for _ in range(5):
        step()
    assert live_bytes() == before


# --- refused ------------------------------------------------------------------------------------


class Unknown(ReversibleLayer):
    def forward(self, x1, x2):
        return 2 * x1, x2

    def inverse(self, y1, y2):
        return y1 / 2, y2


class Overriding(AdditiveCoupling):
    """Inherits a claim that was made of another function."""

    def forward(self, x1, x2):
        return 2 * (x1 + self.run(self.f, x2)), x2

    def inverse(self, y1, y2):
        return y1 / 2 - self.run(self.f, y2), y2


class OverridingAffine(AffineCoupling):
    def forward(self, x1, x2, **kwargs):
        return super().forward(2 * x1, x2, **kwargs)

    def inverse(self, y1, y2, **kwargs):
        x1, x2, *rest = super().inverse(y1, y2, **kwargs)
        return x1 / 2, x2, *rest


class Forgetful(Scaled):
    gives_logdet = True

    def forward(self, x1, x2, logdet=False):
        return super().forward(x1, x2)

    def inverse(self, y1, y2, logdet=False):
        return super().inverse(y1, y2)


class Scalar(Scaled):
    gives_logdet = True

    def forward(self, x1, x2, logdet=False):
        return *super().forward(x1, x2), self.log_scale

    def inverse(self, y1, y2, logdet=False):
        return *super().inverse(y1, y2), -self.log_scale


@pytest.mark.parametrize("save_memory", [True, False])
@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Unknown(), r"layer 1\.0 \(Unknown\): does not know its log-determinant.*volume_pres"),
        (Overriding(nn.Conv2d(2, 2, 1)), r"layer 1\.0 \(Overriding\): does not know"),
        (OverridingAffine(nn.Conv2d(2, 4, 1)), r"layer 1\.0 \(OverridingAffine\): does not know"),
        (Forgetful(), r"layer 1\.0 \(Forgetful\): gave \[\] behind"),
        (Scalar(), r"layer 1\.0 \(Scalar\): gave \[\(\)\] behind .*\(2,\)"),
    ],
)
def test_a_layer_that_does_not_know_is_named(layer, message, save_memory):
    layers = [AffineCoupling(nn.Conv2d(2, 4, 1)), ReversibleSequence([layer])]
    net = ReversibleSequence(layers, save_memory=save_memory)
    x = torch.randn(2, 4, 2, 2)
    with pytest.raises(ReversibleError, match=message):
        net(x, logdet=True)
    with pytest.raises(ReversibleError, match=message):
        net.inverse(x, logdet=True)


def test_samples_lie_along_the_first_axis():
    net = ReversibleSequence([AdditiveCoupling(nn.Identity())], split_dim=0)
    for call in (net, net.inverse):
        with pytest.raises(ReversibleError, match="axis 0"):
            call(torch.randn(4, 3), logdet=True)
    net.split_dim = -2
    with pytest.raises(ReversibleError, match="axis 0"):
        net(torch.randn(4, 3), logdet=True)


def test_an_error_inside_leaves_the_sequence_usable():
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.fail = sub(2), False

        def forward(self, x):
            if self.fail:
                raise KeyError("missing")
            return self.body(x)

    torch.manual_seed(0)
    failing = Failing()
    net = sequence([*glow(1), AffineCoupling(failing), *glow(1)])
    x = torch.randn(2, 4, 3, 3, dtype=DOUBLE)
    failing.fail = True
    with pytest.raises(KeyError) as caught:
        net(x, logdet=True)
    assert "layer 3 (AffineCoupling)" in caught.value.__notes__[0]
    failing.fail = False
    y, logdet = net(x, logdet=True)
    failing.fail = True
    with pytest.raises(KeyError):
        (y.sum() + logdet.sum()).backward()
    failing.fail = False
    expect_same(net, x)


@pytest.mark.parametrize("seed", range(6))
def test_any_schedule_gives_the_same(seed):
    """Where a tape ends before a stored layer, the sum so far must leave with it."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    layers = [AffineCoupling(sub(2), sub(2)) if i % 2 else Invertible1x1Conv(4) for i in range(7)]
    net = ReversibleSequence(layers).double()
    x = torch.randn(3, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, dtype=torch.float64)

    def results():
        y, logdet = net(x, logdet=True)
        loss = y.pow(2).sum() + (weight * logdet).sum()
        return [y, logdet, *torch.autograd.grad(loss, [x, *net.parameters()])]

    net.save_memory = False
    expected = results()
    net.save_memory = True
    for _ in range(3):
        net.schedule = [draw.choice(("invert", "recompute", "store")) for _ in layers]
        for a, b in zip(results(), expected, strict=True):
            assert (a - b).abs().max() < 1e-9
