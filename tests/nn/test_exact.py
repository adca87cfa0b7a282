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
    ReversibleLayer,
    ReversibleSequence,
    SplitSkip,
)

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
    expected = run(Rounded(copies, bits, kind, layout), others.parameters(), x, dy, autocast, seed)
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
