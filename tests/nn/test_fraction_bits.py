"""The suggestion of fraction bits from data."""

import math

import pytest
import torch
from torch import nn

from revgrad import (
    AdditiveCoupling,
    FixedPoint,
    ReversibleError,
    ReversibleSequence,
    suggest_fraction_bits,
)


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.register_buffer("value", torch.tensor(float(value)))

    def forward(self, x, factor=1.0):
        return 0 * x + self.value * factor


def network(*values, **options):
    return ReversibleSequence([AdditiveCoupling(Constant(v)) for v in values], **options)


X = torch.zeros(1, 2, 4, 4)


def test_the_largest_stream_with_headroom_fits():
    net = network(1, 90, 0, -80)
    found = suggest_fraction_bits(net, X)
    assert found.largest == 90 and found.where == "layers.1 (AdditiveCoupling)"
    assert found.fraction_bits == 31 - math.ceil(math.log2(90 * 8)) == 21
    assert suggest_fraction_bits(net, FixedPoint.from_float(X)) == found
    assert str(found) == (
        "fraction_bits=21: streams reach 90 (at layers.1 (AdditiveCoupling)) and may reach 1024; "
        "their steps are 4.8e-07"
    )
    assert suggest_fraction_bits(net, X, headroom=1).fraction_bits == 24
    assert suggest_fraction_bits(net, X, factor=10).fraction_bits == 18
    assert suggest_fraction_bits(network(0.1), X).fraction_bits == 30
    assert suggest_fraction_bits(net, X + 1000).largest == 1090


@pytest.mark.parametrize("value", [2.0, 1.999999, 0.5, 1024.0, 3.0])
def test_the_suggestion_without_headroom_runs(value):
    net = network(value, arithmetic="exact")
    net.fraction_bits = suggest_fraction_bits(net, X, headroom=1).fraction_bits
    net(X)


def test_the_suggestion_runs():
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(4, 4, 3), nn.ZeroPad2d(1)) for _ in range(20)]
    net = ReversibleSequence([AdditiveCoupling(b) for b in blocks], arithmetic="exact")
    x = 1e5 * torch.randn(1, 8, 8, 8)
    with pytest.raises(ReversibleError, match="reaches"):
        net(x)
    net.fraction_bits = suggest_fraction_bits(net, x).fraction_bits
    net(x)


def test_the_network_is_left_as_it_was():
    net = nn.Sequential(
        nn.BatchNorm2d(4), network(1, arithmetic="exact"), nn.Dropout(), nn.BatchNorm2d(4)
    )
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    suggest_fraction_bits(net, torch.randn(2, 4, 3, 3, generator=torch.Generator()))
    assert torch.equal(torch.get_rng_state(), state) and net[1].arithmetic == "exact"
    assert not net[1][0]._forward_hooks
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


def test_what_has_no_suggestion():
    with pytest.raises(ReversibleError, match=r"layers.1 .*: the streams are not finite"):
        suggest_fraction_bits(network(1, math.nan, 1), X)
    with pytest.raises(ReversibleError, match=r"layers.1 .*: the streams reach 3e\+09"):
        suggest_fraction_bits(network(1, 3e9, 1), X)
    with pytest.raises(ValueError, match="no reversible layer ran"):
        suggest_fraction_bits(nn.ReLU(), X)
    with pytest.raises(ValueError, match=r"headroom must be at least 1, not 0\.5"):
        suggest_fraction_bits(network(1), X, headroom=0.5)
