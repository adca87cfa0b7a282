"""The check that compares what is computed back with what was there."""

import numpy as np
import pytest
import torch
from torch import nn

import revgrad
from revgrad import (
    AdditiveCoupling,
    HaarDownsample,
    HaarUpsample,
    JoinSkip,
    OrthogonalDownsample,
    ReversibleError,
    ReversibleLayer,
    ReversibleSequence,
    SplitSkip,
)
from revgrad.nn import IsometricLayer


class Unsteady(nn.Module):
    """Draws from a generator that no one brings back."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.weight * x * float(np.random.default_rng().random())


def block():
    return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.SiLU())


def step(net):
    torch.manual_seed(0)
    net(torch.randn(2, 8, 8, 8)).square().sum().backward()


@pytest.mark.parametrize("retain", [False, True])
def test_exact_arithmetic_deviates_nowhere(retain):
    net = ReversibleSequence([AdditiveCoupling(block(), block())] * 3, arithmetic="exact")
    with revgrad.check_reconstruction() as check:
        step(net)
        step(net)
    assert list(check.deviations) == [f"layer {i} (AdditiveCoupling)" for i in (2, 1, 0)]
    assert set(check.deviations.values()) == {0.0}
    step(net)
    assert "layer 2 (AdditiveCoupling)  0.00e+00" in str(check)


def test_a_sub_network_that_is_not_deterministic_is_named():
    layers = [AdditiveCoupling(block()) for _ in range(5)]
    layers[2] = AdditiveCoupling(block(), Unsteady())
    net = ReversibleSequence(layers, arithmetic="exact")
    step(net)  # nobody notices
    with (
        revgrad.check_reconstruction(),
        pytest.raises(
            ReversibleError,
            match=r"^layer 2 \(AdditiveCoupling\): \d+ of 512 numbers .* not deterministic",
        ),
    ):
        step(net)


def test_float_arithmetic_shows_its_drift():
    net = ReversibleSequence([AdditiveCoupling(block(), block()) for _ in range(20)])
    with revgrad.check_reconstruction() as check:
        step(net)
    first, *_, last = check.deviations.values()
    assert 0 <= first < last < 1e-3


def test_a_layer_that_stores_its_input_does_not_deviate():
    class Double(ReversibleLayer):
        def forward(self, x1, x2):
            return 2 * x1, x2

        def inverse(self, y1, y2):
            return y1 / 2, y2

    net = ReversibleSequence([AdditiveCoupling(block()), Double()], arithmetic="exact")
    with revgrad.check_reconstruction() as check:
        step(net)
    assert set(check.deviations.values()) == {0.0}


def test_nothing_ran():
    with revgrad.check_reconstruction() as check:
        pass
    assert str(check) == "no reversible layer ran backward"


class Doubling(IsometricLayer):
    """Says that its inverse is its transpose, which it is not."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x1, x2):
        return self.factor * x1, x2

    def inverse(self, y1, y2):
        return y1 / self.factor, y2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_isometric_layer_that_is_none_is_named(dtype):
    net = ReversibleSequence([AdditiveCoupling(block()), Doubling(1.01)]).to(dtype)
    x = torch.randn(2, 8, 8, 8, dtype=dtype)
    net(x).sum().backward()  # nobody notices
    with (
        revgrad.check_reconstruction(),
        pytest.raises(
            ReversibleError, match=r"^layer 1 \(Doubling\): the input has the norm .* transpose"
        ),
    ):
        net(x).sum().backward()


@pytest.mark.parametrize("arithmetic", ["float", "exact"])
def test_isometric_layers_that_are(arithmetic):
    layers = [SplitSkip(), HaarDownsample(2), Doubling(-1.0), HaarUpsample(2), JoinSkip()]
    net = ReversibleSequence([*layers, OrthogonalDownsample(8, 2)], arithmetic=arithmetic)
    with revgrad.check_reconstruction() as check:
        net(torch.randn(2, 8, 8, 8, requires_grad=True)).square().sum().backward()
    assert len(check.deviations) == 6
