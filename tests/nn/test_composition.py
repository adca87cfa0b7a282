"""Any composition of layers has the gradients of plain autograd: drawn by hypothesis."""

import copy

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
    PixelShuffleDownsample,
    PixelShuffleUpsample,
    ReversibleLayer,
    ReversibleSequence,
    SplitSkip,
)


class Scaled(ReversibleLayer):
    """A layer with only forward and inverse, and a parameter of its own."""

    def __init__(self, f):
        super().__init__()
        self.f = f
        self.scale = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, x1, x2):
        return x1 + self.scale * self.run(self.f, x2), x2

    def inverse(self, y1, y2):
        return y1 - self.scale * self.run(self.f, y2), y2


class Swap(ReversibleLayer):
    """Gives its input on as it is, in another order."""

    def forward(self, x1, x2):
        return x2, x1

    def inverse(self, y1, y2):
        return y2, y1


class OtherMode(nn.Module):
    """Batch norm and dropout: the state that a repetition has to bring back."""

    def __init__(self, c):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c), nn.Tanh(), nn.Dropout(0.2)
        )

    def forward(self, x):
        return self.body(x)


SUB_NETWORKS = {
    "conv": lambda c: nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.Tanh()).double(),
    "linear": lambda c: nn.Sequential(nn.Conv2d(c, c, 1), nn.SiLU()).double(),
    "stateful": lambda c: OtherMode(c).double(),
    "identity": lambda c: nn.Identity(),
}


def drawn(max_layers):
    """A composition: kinds of layers, and how they are put together."""
    kinds = ["two", "one", "generic", "swap", "down", "up", "split", "join"]
    return given(
        kinds=st.lists(st.sampled_from(kinds), min_size=1, max_size=max_layers),
        sub=st.sampled_from(sorted(SUB_NETWORKS)),
        channels=st.integers(2, 5),
        batch=st.integers(1, 3),
        channels_last=st.booleans(),
        anchor_every=st.sampled_from([None, None, 1, 2, 3]),
        nested=st.booleans(),
        seed=st.integers(0, 1000),
    )


def check(kinds, sub, channels, batch, channels_last, anchor_every, nested, seed):
    torch.manual_seed(seed)
    layers = compose(kinds, channels, SUB_NETWORKS[sub])
    if nested and len(layers) > 2:
        layers = [layers[0], ReversibleSequence(layers[1:-1], anchor_every=2), layers[-1]]
    net = ReversibleSequence(layers, anchor_every=anchor_every)
    x = torch.randn(batch, 2 * channels, 8, 8, dtype=torch.float64)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    twin = copy.deepcopy(net)
    twin.save_memory = False
    expected, found = gradients(twin, x, seed), gradients(net, x, seed)
    for a, b in zip(expected, found, strict=True):
        assert (a is None and b is None) or (a - b).abs().max() <= 1e-8 * (1 + a.abs().max())
    if sub != "stateful":
        y = net(x)
        # Couplings with the identity grow like Fibonacci numbers, there and back again.
        assert (net.inverse(y) - x).abs().max() < 1e-9 + 1e-14 * y.abs().max() ** 2


def gradients(net, x, seed):
    x = x.clone().requires_grad_()
    torch.manual_seed(seed)
    y = net(x)
    (y.sin() * torch.linspace(1, 2, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    after = torch.rand(1, dtype=x.dtype)
    return [y.detach(), x.grad, *(p.grad for p in net.parameters()), *net.buffers(), after]


@settings(max_examples=40, deadline=None)
@drawn(max_layers=12)
def test_any_composition(**composition):
    check(**composition)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@drawn(max_layers=60)
def test_any_deep_composition(**composition):
    check(**composition)


def compose(kinds, channels, sub):
    """Layers of these kinds with fitting channels; what is opened is closed at the end."""
    layers, c, depth, skips = [], channels, 0, []

    def up():
        nonlocal c, depth
        layers.append(HaarUpsample(2) if depth % 2 else PixelShuffleUpsample(2))
        c, depth = c // 4, depth - 1

    def join():
        nonlocal c
        layers.append(JoinSkip())
        c = skips.pop()[0]

    for kind in kinds:
        if kind == "two":
            layers.append(AdditiveCoupling(sub(c), sub(c)))
        elif kind == "one":
            layers.append(AdditiveCoupling(sub(c)))
        elif kind == "generic":
            layers.append(Scaled(sub(c)))
        elif kind == "swap":
            layers.append(Swap())
        elif kind == "down" and depth < 2:
            c, depth = c * 4, depth + 1
            layers.append(HaarDownsample(2) if depth % 2 else PixelShuffleDownsample(2))
        elif kind == "up" and depth > (skips[-1][1] if skips else 0):
            up()
        elif kind == "split" and c > 1:
            layers.append(SplitSkip())
            skips.append((c, depth))
            c -= c // 2
        elif kind == "join" and skips and skips[-1][1] == depth:
            join()
    while skips:
        while depth > skips[-1][1]:
            up()
        join()
    while depth:
        up()
    return layers
