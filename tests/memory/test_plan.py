"""`plan`: the knapsack against all schedules, peaks against `measure`; it leaves no trace."""

import copy
import gc
import random
from itertools import product

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from revgrad import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    HaarDownsample,
    HaarUpsample,
    JoinSkip,
    ReversibleSequence,
    SplitSkip,
    Tap,
)
from revgrad.memory import (
    Plan,
    estimate,
    is_trial_run,
    layer_costs,
    live_bytes,
    measure,
    plan,
)
from revgrad.memory.fastest import Cost, fastest, total
from revgrad.models import iUNet

WAYS = ("invert", "recompute", "store")


def block(c):
    return nn.Sequential(
        nn.Conv2d(c, c, 3, padding=1), nn.InstanceNorm2d(c, affine=True), nn.LeakyReLU(0.01)
    )


def sequence(depth=4, c=8, **options):
    torch.manual_seed(0)
    return ReversibleSequence(
        [AdditiveCoupling(block(c), block(c)) for _ in range(depth)], **options
    )


# --- the knapsack -------------------------------------------------------------------------------

sizes = st.integers(0, 30)
seconds = st.integers(-4, 20).map(float)
some_costs = st.lists(
    st.builds(
        Cost,
        recompute=sizes,
        store=sizes,
        state=sizes,
        invert_space=sizes,
        store_space=sizes,
        recompute_seconds=seconds,
        store_seconds=seconds,
        state_seconds=st.integers(0, 3).map(float),
        first=st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


def fits(costs, ways, allowance):
    """Whether at each layer what is kept up to it and its own space are within the limit."""
    limit = allowance + max(cost.invert_space for cost in costs)
    return all(
        total(costs[: i + 1], ways[: i + 1])[0] + cost.space(ways[i]) <= limit
        for i, cost in enumerate(costs)
    )


NOTHING = Cost(0, 0, 0, 0, 0, 0.0, 0.0)
TOO_WIDE = Cost(0, 0, 0, 1, 3, 0.0, 0.0)  # stored, its own space is more than the limit


@settings(max_examples=200, deadline=None)
@given(costs=some_costs, allowance=st.integers(0, 120))
@example(costs=[TOO_WIDE, NOTHING], allowance=0)
def test_no_schedule_that_fits_is_faster(costs, allowance):
    ways = fastest(costs, allowance)
    assert fits(costs, ways, allowance)
    schedules = [s for s in product(WAYS, repeat=len(costs)) if fits(costs, s, allowance)]
    assert total(costs, ways)[1] == max(total(costs, s)[1] for s in schedules)


@settings(max_examples=50, deadline=None)
@given(costs=some_costs, allowances=st.lists(st.integers(0, 120), min_size=5, max_size=5))
def test_more_memory_is_never_slower(costs, allowances):
    saved = [total(costs, fastest(costs, a))[1] for a in sorted(allowances)]
    assert saved == sorted(saved)


def test_bytes_are_rounded_to_a_2048th_each():
    generator = random.Random(0)
    costs = [
        Cost(
            recompute=10**9,
            store=generator.randrange(10**6, 10**7),
            state=0,
            invert_space=0,
            store_space=0,
            recompute_seconds=0.0,
            store_seconds=generator.uniform(1, 2),
        )
        for _ in range(60)
    ]
    allowance = 10**8
    kept, saved = total(costs, fastest(costs, allowance))
    assert allowance * 0.97 <= kept <= allowance * (1 + 30 / 2048)
    greedy, room = 0.0, allowance
    for cost in sorted(costs, key=lambda c: c.store / c.store_seconds):
        if cost.store <= room:
            greedy, room = greedy + cost.store_seconds, room - cost.store
    assert saved >= 0.98 * greedy


# --- the peak -----------------------------------------------------------------------------------


@pytest.fixture
def steady(monkeypatch):
    """Seconds that are no matter of chance: what is stored saves one each."""
    saved = {"invert": 0.0, "recompute": 0.0, "store": 1.0}
    monkeypatch.setattr(layer_costs._Alike, "saved", lambda self, way: saved[way])
    monkeypatch.setattr(layer_costs._Alike, "end_of_tape", lambda self: 0.01)


class Sided(nn.Module):
    """A sequence with taps, skips, a side input and an inner sequence inside of a network."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.body = ReversibleSequence(
            [
                AdditiveCoupling(Scaled(8), Scaled(8)),
                Tap("fine"),
                SplitSkip(),
                HaarDownsample(2),
                ReversibleSequence([AdditiveCoupling(Scaled(16)), AdditiveCoupling(Scaled(16))]),
                Tap("coarse", nn.Conv2d(32, 3, 1)),
                HaarUpsample(2),
                JoinSkip(),
                AdditiveCoupling(Scaled(8)),
            ]
        )

    def forward(self, x, scale):
        y, taps = self.body(self.first(x), scale=scale)
        return y.mean() + taps["fine"].mean() + taps["coarse"].mean()


class Scaled(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c), nn.SiLU())

    def forward(self, x, scale):
        return self.body(x) * scale


def image(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


CASES = {
    "sequence": (sequence, (2, 16, 48, 48), {}),
    "exact": (lambda: sequence(8, arithmetic="exact"), (2, 16, 32, 32), {}),
    "bfloat16": (sequence, (2, 16, 48, 48), {"dtype": torch.bfloat16}),
    "AdamW": (sequence, (2, 16, 48, 48), {"optimizer": torch.optim.AdamW}),
    "iUNet": (lambda: iUNet(2, 1, 1, (16, 32), (1, 1)), (2, 1, 96, 96), {}),
    "sided": (Sided, (2, 1, 48, 48), {}),
}


def measured(model, arguments, optimizer=None, dtype=None):
    """The peak of a real step, less what was there before beside the step's own input."""
    made = optimizer(model.parameters()) if optimizer is not None else None

    def step():
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            y = model(*arguments)
            loss = y.sum()
        loss.backward()
        if made is not None:
            made.step()

    report = measure(step, model)
    state = [t for s in (made.state if made else {}).values() for t in s.values()]
    own = sum(t.nbytes for t in (*arguments, *model.buffers(), *state))
    return report.peak_without_scratch - report.other + own


@pytest.mark.parametrize("case", CASES)
def test_the_peak_is_as_predicted_and_within_the_budget(case, steady):
    make, shape, options = CASES[case]
    model = make()
    arguments = (image(*shape), torch.ones(1)) if case == "sided" else (image(*shape),)
    tolerance = {"exact": 0.05}.get(case, 0.02)
    for fraction in (0.0, 0.4, 1.0):
        found = plan(model, arguments, fraction, repeats=1, **options)
        assert found.lowest <= found.peak <= found.budget
        real = measured(model, arguments, **options)
        assert abs(real / found.peak - 1) <= tolerance, (fraction, real, str(found))
        if fraction == 0.0:
            assert found.peak == found.lowest == found.budget
    assert found.budget == found.highest


@pytest.mark.parametrize("way", ["invert", "store"])
def test_the_ends_of_the_scale_to_the_byte(way):
    model, x = sequence(), image(2, 16, 48, 48)
    found = plan(model, x, 0.0, repeats=1)
    model.schedule = way
    real = measured(model, (x,))
    assert real == (found.lowest if way == "invert" else found.highest)
    model.schedule, model.save_memory = "invert", way == "invert"
    assert measured(model, (x,)) == real


def test_what_a_layer_keeps(steady):
    x = image(2, 16, 48, 48)
    stream = 2 * 8 * 48 * 48 * 4
    found = plan(sequence(), x, 1.0, repeats=1)
    layers = {la.way: la for la in found.layers}
    assert 0 <= layers["store"].bytes % stream <= 2048
    assert layers["store"].bytes // stream in (6, 7)  # with the other stream behind a tape


def test_half_of_the_way_is_used(steady):
    """Something is stored, and the more, the more memory there is."""
    model, x = sequence(depth=8), image(2, 16, 32, 32)
    peaks, stored = [], []
    for fraction in (0.25, 0.5, 0.75, 1.0):
        found = plan(model, x, fraction, repeats=1)
        peaks.append(found.peak)
        stored.append(sum(la.bytes for la in found.layers))
    assert peaks == sorted(peaks) and peaks[0] > found.lowest
    assert stored == sorted(stored) and len(set(stored)) == 4
    # No more is left over than the largest layer and its tape's end would take.
    largest = max(la.bytes for la in found.layers)
    assert all(
        found.lowest + f * (found.highest - found.lowest) - p <= 2 * largest
        for f, p in zip((0.25, 0.5, 0.75), peaks, strict=False)
    )


def test_gradients_are_those_of_ordinary_autograd_with_a_plan():
    model, arguments = Sided().double(), (image(2, 1, 16, 16).double(), torch.ones(1).double())
    plan(model, arguments, 0.5, repeats=1)
    results = []
    for save_memory in (True, False):
        model.body.save_memory = save_memory
        model.zero_grad()
        model(*arguments).backward()
        results.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


# --- around it ----------------------------------------------------------------------------------


def test_it_leaves_no_trace_but_the_schedule():
    torch.manual_seed(1)
    model = Sided()
    model.body.layers[0].eval()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    state = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    generators = torch.get_rng_state(), random.getstate()
    arguments = image(2, 1, 16, 16), torch.ones(1)
    gc.collect()
    alive = live_bytes()
    found = plan(model, arguments, 0.5, repeats=1, apply=False)
    gc.collect()
    assert live_bytes() == alive
    assert model.body.schedule == "invert"
    assert [m.training for m in model.modules()] == modes
    assert all(
        torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True)
    )
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    assert torch.equal(generators[0], torch.get_rng_state()) and generators[1] == random.getstate()
    twin = copy.deepcopy(model)
    found.apply(twin)
    assert twin.body.schedule == found.schedules["body"]
    assert list(found.schedules["body"]) == [
        "0", "1", "2", "3", "4.0", "4.1", "5", "6", "7", "8",
    ]  # fmt: skip


def test_hooks_run_and_can_tell_that_it_is_a_trial(steady):
    """Those that are a part of the model, as a parametrisation by hooks, have to run."""
    net = ReversibleSequence([AdditiveCoupling(nn.Conv2d(2, 2, 1)) for _ in range(2)])
    calls = {True: 0, False: 0}

    def count(*_):
        calls[is_trial_run()] += 1

    for module in (net, net[0], net[1].f):
        module.register_forward_hook(count)
        module.register_full_backward_hook(count)
    x = image(1, 4, 4, 4)
    estimate(net, x, device="cpu")
    found = calls.pop(True)
    assert found > 0 == calls[False]
    calls[True] = 0
    plan(net, x, 0.5, repeats=1)
    assert calls[True] > found and calls[False] == 0
    net(x).sum().backward()
    assert calls[False] > 0 and not is_trial_run()
    with pytest.raises(ValueError, match="layers inverted the step takes"):
        plan(net, x, 1, repeats=1)
    assert not is_trial_run()


class Flow(nn.Module):
    """A flow that gives its log-likelihood, called by keyword under an autocast of its own."""

    def __init__(self, autocast):
        super().__init__()
        torch.manual_seed(0)
        layers = [ActNorm(8), AffineCoupling(nn.Conv2d(4, 8, 3, padding=1)), Counting(4)]
        self.body = ReversibleSequence([*layers[:2], AdditiveCoupling(layers[2]), Tap("end")])
        self.autocast = autocast

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            y, logdet, taps = self.body(x=x, logdet=True)
        return (y.square() + taps["end"]).sum() - logdet.sum()


class Counting(nn.Module):
    """Replaces a buffer in each call."""

    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls = self.calls + 1
        return self.conv(x)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_flow(autocast):
    """Its ActNorm is not started by what `plan` runs, in evaluation mode least of all."""
    model = Flow(autocast)
    state = copy.deepcopy(model.state_dict())
    x = image(2, 8, 16, 16) * (1 + 4 * autocast)
    found = plan(model, x.bfloat16() if autocast else x, 0.5, repeats=1)
    assert list(found.schedules["body"]) == ["0", "1", "2", "3"]
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_a_fraction_where_storing_takes_less_than_inverting():
    model = ReversibleSequence([AdditiveCoupling(nn.Conv2d(2, 2, 1))])
    found = plan(model, image(1, 4, 4, 4), 0.5, repeats=1)
    assert found.highest < found.lowest == found.budget


def test_frozen_weights_behind_something_that_learns():
    model, x = sequence(2).requires_grad_(False), image(1, 16, 8, 8)
    assert plan(model, x.requires_grad_(), 1.0, repeats=1).peak > 0
    with pytest.raises(ValueError, match="nothing in the model or its input requires a gradient"):
        plan(model, x.detach(), 1.0, repeats=1)


def test_a_plan_for_another_model():
    model = sequence(2)
    found = plan(model, image(1, 16, 8, 8), 1.0, repeats=1)
    with pytest.raises(ValueError, match="ReversibleSequence at '', which this Sequential has not"):
        found.apply(nn.Sequential(model))


def test_the_table():
    found = plan(sequence(), image(2, 16, 32, 32), "1GB", repeats=1)
    assert isinstance(found, Plan) and found.budget == 10**9
    lines = str(found).splitlines()
    assert lines[0].split() == ["layer", "way", "MiB", "kept", "ms", "saved"]
    assert [line.split()[:2] for line in lines[1:5]] == [
        [str(i), "AdditiveCoupling"] for i in range(4)
    ]
    assert "MiB of 953.67 MiB; all inverted" in lines[5]
    assert lines[6].startswith("step ")


def test_a_way_back_that_fails_leaves_the_schedule():
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 1)

        def forward(self, x):
            if torch.is_grad_enabled():
                raise ValueError("not today")
            return self.conv(x)

    model = ReversibleSequence([AdditiveCoupling(Failing())], schedule=["recompute"])
    with pytest.raises(ValueError, match="not today"):
        plan(model, image(1, 4, 8, 8), 0.5)
    assert model.schedule == {"0": "recompute"}


def test_a_budget_that_nothing_fits():
    model, x = sequence(), image(2, 16, 32, 32)
    least = estimate(model, x, device="cpu").allocated
    with pytest.raises(ValueError, match=f"all layers inverted the step takes {least} "):
        plan(model, x, least - 1, repeats=1)
    assert plan(model, x, least, repeats=1).peak == least


@pytest.mark.parametrize(
    ("memory", "error", "message"),
    [
        ("2 potatoes", ValueError, "no size of memory"),
        (1.5, ValueError, "must lie between 0.0"),
        (None, TypeError, "a size such as"),
        (True, TypeError, "a size such as"),
    ],
)
def test_budgets_that_are_none(memory, error, message):
    with pytest.raises(error, match=message):
        plan(sequence(), image(1, 16, 8, 8), memory)


def test_other_arguments_that_are_none():
    with pytest.raises(ValueError, match="nothing to plan"):
        plan(nn.Conv2d(1, 1, 1), image(1, 1, 8, 8), 0.5)
    with pytest.raises(ValueError, match="save_memory=False"):
        plan(sequence(save_memory=False), image(1, 16, 8, 8), 0.5)
    with pytest.raises(ValueError, match="repeats must be at least 1"):
        plan(sequence(), image(1, 16, 8, 8), 0.5, repeats=0)
    with pytest.raises(TypeError, match="input must be a tensor"):
        plan(sequence(), (1, 16, 8, 8), 0.5)
