"""Frozen, shared, tied, replaced and changed parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from revgrad.benchmarks.reliability.case import case, conv, tanh
from revgrad.benchmarks.reliability.networks import Plan
from revgrad.benchmarks.reliability.setup import (
    Net,
    Setup,
    loss,
)


@case("frozen parameters")
def frozen_parameters(setup: Setup) -> None:
    def run(net: Net) -> Any:
        for p in net.parameters()[::2]:
            p.requires_grad_(False)
        return net.step()

    setup.compare(run)


@case("a frozen sub-network")
def frozen_branch(setup: Setup) -> None:
    def run(net: Net) -> Any:
        net.branches[1].requires_grad_(False)
        return net.step()

    setup.compare(run)


@case("all frozen, gradient of the input only")
def all_frozen(setup: Setup) -> None:
    def run(net: Net) -> Any:
        net.module.requires_grad_(False)
        return net.step()

    setup.compare(run)


@case("first couplings frozen, input without gradient")
def frozen_start(setup: Setup) -> None:
    def run(net: Net) -> Any:
        for b in net.branches[:2]:
            b.requires_grad_(False)
        return net.step()

    setup.compare(run, setup.nets(needs_grad=False))


class WithUnused(nn.Module):
    """A sub-network with a parameter that takes no part."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        """The convolution alone."""
        return self.conv(x).tanh()


@case("an unused parameter")
def unused_parameter(setup: Setup) -> None:
    setup.compare(Net.step, setup.nets(WithUnused))


@case("a sub-network shared by all couplings")
def shared_module(setup: Setup) -> None:
    def alter(plan: Plan) -> None:
        f = plan.outer[0][0]
        plan.outer = [(f, f) for _ in plan.outer]

    setup.compare(Net.step, setup.nets(alter=alter))


@case("a shared sub-network with batch norm and dropout")
def shared_stateful(setup: Setup) -> None:
    def alter(plan: Plan) -> None:
        f = plan.outer[0][0]
        plan.outer = [(f, f) for _ in plan.outer]

    make = conv(nn.BatchNorm2d, tanh, lambda c: nn.Dropout(0.3))
    setup.compare(Net.step, setup.nets(make, alter=alter))


@case("a weight tied between two sub-networks")
def tied_weight(setup: Setup) -> None:
    def alter(plan: Plan) -> None:
        for f, g in plan.outer:
            convs = [m for b in (f, g) for m in b.modules() if isinstance(m, nn.Conv2d)]
            convs[1].weight = convs[0].weight

    setup.compare(Net.step, setup.nets(alter=alter))


@case("torch.func.functional_call with other parameters")
def functional_call(setup: Setup) -> None:
    def run(net: Net) -> Any:
        own = net.parameters()
        scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
        given = {n: p * scale for n, p in net.module.named_parameters()}
        y = torch.func.functional_call(net.module, given, (net.inside(), *net.side))
        loss(y).backward()
        return y.detach(), scale.grad, net.grads(), len(own)

    setup.compare(run)


@case("parameters changed between forward and backward: an error, as in plain autograd")
def changed_parameters(setup: Setup) -> None:
    def run(net: Net) -> Any:
        y = net()
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(1.1)
        try:
            loss(y).backward()
        except RuntimeError:
            return "refused"
        return "accepted"

    setup.compare(run)


@case("ten steps of Adam")
def adam(setup: Setup) -> None:
    def run(net: Net) -> Any:
        optimizer = torch.optim.Adam(net.module.parameters(), 1e-3)
        for _ in range(10):
            optimizer.zero_grad()
            loss(net()).backward()
            optimizer.step()
        return net.parameters()

    setup.compare(run, tolerance=1e-7)
