"""What goes in, what comes out, and what a caller does with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from revgrad.benchmarks.reliability.case import case, conv
from revgrad.benchmarks.reliability.setup import (
    Net,
    Setup,
    expect_equal,
    loss,
)


@case("an input that needs no gradient (data straight in)")
def no_input_grad(setup: Setup) -> None:
    setup.compare(Net.step, setup.nets(needs_grad=False))


@case("the gradient of a leaf that is the input itself")
def leaf_input(setup: Setup) -> None:
    def run(net: Net) -> Any:
        loss(net(net.x)).backward()
        return net.grads()

    setup.compare(run)


@case("the caller's input stays as it is")
def input_untouched(setup: Setup) -> None:
    def run(net: Net) -> Any:
        before, version = net.x.detach().clone(), net.x._version
        results = net(net.x).detach()
        same = torch.equal(before, net.x.detach())
        return results, same, net.x._version == version

    setup.compare(run)


@case("an input that is used elsewhere too (skip around)")
def skip_around(setup: Setup) -> None:
    def run(net: Net) -> Any:
        h = net.x * 2
        y = net(h) + h.sin()
        loss(y).backward()
        return y.detach(), net.grads()

    setup.compare(run)


@case("ReLU before the sequence")
def relu_before(setup: Setup) -> None:
    def run(net: Net) -> Any:
        loss(net((net.x * 2).relu())).backward()
        return net.grads()

    setup.compare(run)


@case("in-place ReLU before the sequence")
def inplace_relu_before(setup: Setup) -> None:
    def run(net: Net) -> Any:
        loss(net((net.x * 2).relu_())).backward()
        return net.grads()

    setup.compare(run)


@case("the input changed in place after the forward pass")
def input_changed_later(setup: Setup) -> None:
    def run(net: Net) -> Any:
        x = net.x.detach().clone()
        y = net(x)
        try:
            x.zero_()
            loss(y).backward()
        except RuntimeError:  # plain autograd refuses where it needs the input
            return None
        return net.grads()

    _, tested = setup.nets(needs_grad=False)
    plain, _ = setup.nets(needs_grad=False)
    x = plain.x.detach()
    loss(plain(x)).backward()
    found = run(tested)
    if found is not None:
        expect_equal(
            [g for g in plain.grads() if g is not None], [g for g in found if g is not None]
        )


@case("in-place activation at the end of a sub-network")
def inplace_at_end(setup: Setup) -> None:
    setup.compare(Net.step, setup.nets(conv(lambda c: nn.LeakyReLU(0.1, inplace=True))))


@case("a loss on a part of the output")
def partial_loss(setup: Setup) -> None:
    def run(net: Net) -> Any:
        net()[:, :2, 1:3].sin().sum().backward()
        return net.grads()

    setup.compare(run)


@case("the output changed in place", refuses=True)
def output_changed(setup: Setup) -> None:
    def run(net: Net) -> Any:
        y = net()
        y.mul_(2)
        loss(y).backward()
        return net.grads()

    setup.compare(run)


# Plain autograd refuses it too in the other networks.
@case("the first operation of a sub-network in place", kinds=("sequence", "side"), refuses=True)
def inplace_first(setup: Setup) -> None:
    def make(c: int) -> nn.Module:
        return nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(c, c, 3, padding=1))

    setup.compare(Net.step, setup.nets(make, needs_grad=False))


@case("a sub-network that changes the shape", refuses=True)
def wrong_shape(setup: Setup) -> None:
    def make(c: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.AdaptiveAvgPool2d(1))

    setup.compare(Net.step, setup.nets(make))


@case("a sub-network that gives a wider dtype", refuses=True)
def wrong_dtype(setup: Setup) -> None:
    class Widening(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(channels, channels, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.to(self.conv.weight.dtype)).double()

    setup.compare(Net.step, setup.nets(Widening, dtype=torch.float32), tolerance=1e-4)


@case("a tensor that a sub-network captures without owning it", refuses=True)
def captured(setup: Setup) -> None:
    shared = torch.ones((), dtype=torch.float64, requires_grad=True)

    class Capturing(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(channels, channels, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).tanh() * shared

    def run(net: Net) -> Any:
        shared.grad = None
        loss(net()).backward()
        return net.grads(), shared.grad

    setup.compare(run, setup.nets(Capturing))
