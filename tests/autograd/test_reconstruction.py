"""The check that compares what is computed back with what was there."""

import numpy as np
import pytest
import torch
from torch import nn

import revgrad
from revgrad import AdditiveCoupling, ReversibleError, ReversibleLayer, ReversibleSequence


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
