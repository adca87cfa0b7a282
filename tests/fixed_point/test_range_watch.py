"""Leaving the range is noticed: at once, after the pass, or when the device has answered."""

import math

import pytest
import torch
from torch import nn

from revgrad import (
    AdditiveCoupling,
    FixedPoint,
    HaarDownsample,
    ReversibleError,
    ReversibleLayer,
    ReversibleSequence,
    Tap,
)
from revgrad.fixed_point import range_watch


class Constant(nn.Module):
    """A sub-network whose value is known, with a parameter."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(float(value)))

    def forward(self, x):
        return 0 * x + self.value


def sequence(*values, **options):
    layers = [AdditiveCoupling(Constant(v)) for v in values]
    return ReversibleSequence(layers, arithmetic="exact", **options)


X = torch.zeros(1, 2, 4, 4)


class SlowParcel:
    """As `range_watch.Parcel`, from a device that answers when the test lets it."""

    arrived = False

    def __init__(self, tensor):
        self.tensor = tensor

    def has_arrived(self):
        return SlowParcel.arrived

    def values(self):
        assert SlowParcel.arrived, "nobody may wait for the device"
        return self.tensor


@pytest.fixture
def slow_device(monkeypatch):
    """Lets the CPU behave like a device that is not to be waited for."""
    monkeypatch.setattr(range_watch, "answers_at_once", lambda device: False)
    monkeypatch.setattr(range_watch, "Parcel", SlowParcel)
    monkeypatch.setattr(SlowParcel, "arrived", False)
    assert not range_watch._pending
    yield SlowParcel
    range_watch._pending.clear()


@pytest.mark.parametrize("check", ["async", "sync"])
@pytest.mark.parametrize("save_memory", [True, False])
class TestErrors:
    """The message names the layer, what left the range, and by how much."""

    def expect(self, message, net, x=X):
        with pytest.raises(ReversibleError, match=message):
            net(x)

    def test_value_of_a_sub_network(self, check, save_memory):
        net = sequence(1, 2, 3000, 4, check=check, save_memory=save_memory)
        self.expect(
            r"^layer 2 \(AdditiveCoupling\): the value of the sub-network Constant reaches 3000 "
            r"in size, but with fraction_bits=20 numbers must stay below 2048",
            net,
        )

    def test_stream(self, check, save_memory):
        net = sequence(1500, 0, 1500, check=check, save_memory=save_memory)
        self.expect(r"^layer 2 \(AdditiveCoupling\): the stream reaches 3000", net)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_not_finite(self, check, save_memory, value):
        net = sequence(1, value, check=check, save_memory=save_memory)
        self.expect(r"^layer 1 \(AdditiveCoupling\): the value .* Constant is not finite", net)

    def test_input(self, check, save_memory):
        net = sequence(1, check=check, save_memory=save_memory)
        self.expect("^the input of the sequence reaches 4000", net, X + 4000)
        self.expect("^the input of the sequence is not finite", net, X * math.nan)

    def test_haar(self, check, save_memory):
        net = ReversibleSequence(
            [HaarDownsample(2)], arithmetic="exact", check=check, save_memory=save_memory
        )
        net(X + 1000)
        self.expect(r"^layer 0 \(HaarDownsample\): the stream reaches 2200", net, X + 1100)

    def test_inverse(self, check, save_memory):
        net = sequence(3000, check=check, save_memory=save_memory)
        with pytest.raises(ReversibleError, match=r"^layer 0 .* reaches 3000"):
            net.inverse(X)

    def test_inside_a_sub_network(self, check, save_memory):
        inner = sequence(3000, check=check, save_memory=save_memory)
        outer = ReversibleSequence([AdditiveCoupling(inner)], arithmetic="exact", check=check)
        with pytest.raises(ReversibleError, match=r"layer 0 .*layer 0 .* reaches 3000"):
            outer(torch.zeros(1, 4, 4, 4))


def test_the_whole_range_can_be_used():
    net = sequence(*[500.0] * 4, *[-900.0] * 4, *[990.0] * 4)
    y = net(X)
    assert y.abs().max() == 1180
    sequence(*[1.0, -1.0] * 2000)(X)  # bounds of sums must not add up without end


def test_bounds_are_measured_before_anything_is_refused():
    """Sums of bounds, and what Haar could make of them, are no reason for an error."""

    def pairs(count):
        values = (1.0 if i % 2 else -1.0 for i in range(count))
        return [AdditiveCoupling(Constant(v), Constant(v)) for v in values]

    def net(*layers):
        return ReversibleSequence(layers, arithmetic="exact", fraction_bits=26)

    x = torch.zeros(1, 4, 2, 2, 2)
    net(*pairs(13), HaarDownsample(3))(x)
    net(*pairs(14), AdditiveCoupling(Constant(18.0)))(x)


class Writes(ReversibleLayer):
    """A layer of a user that brings numbers along of which nobody knows the size."""

    exact = True

    def __init__(self, value):
        super().__init__()
        self.number = FixedPoint.from_float(torch.full((1, 1, 1, 1), float(value)))

    def forward(self, x1, x2):
        return x1 + self.number, x2

    def inverse(self, y1, y2):
        return y1 - self.number, y2


@pytest.mark.parametrize("check", ["async", "sync"])
def test_numbers_of_unknown_size_are_measured(check):
    net = ReversibleSequence([Writes(1000)] * 2, arithmetic="exact", check=check)
    net(X)
    net = ReversibleSequence([Writes(1000)] * 5, arithmetic="exact", check=check)
    with pytest.raises(ReversibleError, match=r"^layer 2 \(Writes\): the stream reaches 3000"):
        net(X)


def test_fixed_point_output_waits_for_a_slow_device(slow_device):
    """It has no NaN."""
    with pytest.raises(ReversibleError, match=r"^layer 0 .* reaches 3000"):
        sequence(3000)(FixedPoint.from_float(X))


def test_options_that_were_changed_are_checked():
    net = sequence(1)
    net.check = "Sync"
    with pytest.raises(ValueError, match="check must be one of"):
        net(X)


@pytest.mark.parametrize("save_memory", [True, False])
def test_a_slow_device_makes_output_and_gradients_nan(slow_device, save_memory):
    net = sequence(3000, save_memory=save_memory)
    x = X.clone().requires_grad_()
    y = net(x)
    assert y.isnan().all()
    y.sum().backward()
    assert x.grad.isnan().all() and net[0].f.value.grad.isnan()


@pytest.mark.parametrize("save_memory", [True, False])
def test_a_slow_device_that_finds_nothing_changes_nothing(slow_device, save_memory):
    net = sequence(3, save_memory=save_memory)
    x = X.clone().requires_grad_()
    y = net(x)
    y.sum().backward()
    assert y.abs().max() == 3 and torch.equal(x.grad, torch.ones_like(x))
    slow_device.arrived = True
    net(x)


def test_a_tapped_value_becomes_nan_too(slow_device):
    net = ReversibleSequence(
        [AdditiveCoupling(Constant(3000)), Tap("t"), Tap("h", nn.Conv2d(2, 1, 1))],
        arithmetic="exact",
    )
    _, taps = net(X)
    assert taps["t"].isnan().all() and taps["h"].isnan().all()


def test_the_error_comes_with_the_next_forward_pass(slow_device):
    net, other = sequence(3000), sequence(1)
    net(X).sum().backward()
    other(X)
    slow_device.arrived = True
    with pytest.raises(ReversibleError, match=r"^layer 0 .* reaches 3000"):
        other(X)
    other(X)  # it is raised once


def test_the_error_comes_before_the_backward_pass(slow_device):
    y = sequence(3000)(X)
    slow_device.arrived = True
    with pytest.raises(ReversibleError, match=r"^layer 0 .* reaches 3000"):
        y.sum().backward()


def test_the_error_comes_after_the_backward_pass(slow_device):
    class Arrives(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.view_as(x)

        @staticmethod
        def backward(ctx, grad):
            slow_device.arrived = True
            return grad

    y = sequence(3000)(Arrives.apply(X.clone().requires_grad_()))
    with pytest.raises(ReversibleError, match=r"^layer 0 .* reaches 3000"):
        y.sum().backward()


@pytest.mark.parametrize("check", ["sync"])
def test_sync_waits_for_a_slow_device(slow_device, check):
    with pytest.raises(ReversibleError, match=r"^layer 1 .* reaches 3000"):
        sequence(1, 3000, check=check)(X)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda():
    net = sequence(3000).cuda()
    x = X.cuda().requires_grad_()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        y = net(x)
        y.sum().backward()
    except ReversibleError:
        return  # the device was faster
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert y.isnan().all() and x.grad.isnan().all()
    with pytest.raises(ReversibleError, match=r"^layer 0 .* reaches 3000"):
        net(x)
