"""What a sub-network has outside of its arguments: random numbers, modes, buffers."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from revgrad.benchmarks.reliability.case import case, conv, tanh
from revgrad.benchmarks.reliability.setup import (
    Net,
    Setup,
    loss,
)


@case("dropout")
def dropout(setup: Setup) -> None:
    make = conv(tanh, lambda c: nn.Dropout(0.4), lambda c: nn.Conv2d(c, c, 1))
    setup.compare(Net.step, setup.nets(make))


@case("dropout, another draw between forward and backward")
def dropout_draw_between(setup: Setup) -> None:
    def run(net: Net) -> Any:
        y = net()
        torch.rand(100)
        loss(y).backward()
        return net.grads()

    setup.compare(run, setup.nets(conv(tanh, lambda c: nn.Dropout2d(0.4))))


@case("Python's random in a sub-network")
def python_random(setup: Setup) -> None:
    class Skipping(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(channels, channels, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).tanh() * (0 if random.random() < 0.5 else 2)

    setup.compare(Net.step, setup.nets(Skipping))


@case("autocast around the forward pass")
def autocast(setup: Setup) -> None:
    def run(net: Net) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            y = net()
        loss(y).backward()
        return net.grads(), y.dtype == torch.float32

    setup.compare(run, setup.nets(dtype=torch.float32), tolerance=2e-3)


@case("autocast around forward and backward")
def autocast_both(setup: Setup) -> None:
    def run(net: Net) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            loss(net()).backward()
        return net.grads()

    setup.compare(run, setup.nets(dtype=torch.float32), tolerance=2e-3)


@case("autocast, a weight used again outside of the sequence")
def autocast_cache(setup: Setup) -> None:
    def run(net: Net) -> Any:
        weight = net.parameters()[0]
        with torch.autocast("cpu", torch.bfloat16):
            y = net()
            again = nn.functional.conv2d(net.x[:, : weight.shape[1]], weight)
        (loss(y) + loss(again)).backward()
        return net.grads()

    setup.compare(run, setup.nets(dtype=torch.float32), tolerance=2e-3)


@case("batch norm in training: gradients and running statistics")
def batch_norm(setup: Setup) -> None:
    setup.compare(Net.step, setup.nets(conv(nn.BatchNorm2d, tanh)))


@case("batch norm, two forward passes before the backward passes")
def batch_norm_twice(setup: Setup) -> None:
    def run(net: Net) -> Any:
        first, second = net(), net(net.x * 2)
        loss(first).backward()
        loss(second).backward()
        return net.grads(), net.buffers()

    setup.compare(run, setup.nets(conv(nn.BatchNorm2d, tanh)))


@case("batch norm in evaluation")
def batch_norm_eval(setup: Setup) -> None:
    def run(net: Net) -> Any:
        net.module.eval()
        return net.step()

    setup.compare(run, setup.nets(conv(nn.BatchNorm2d, tanh)))


@case("eval() between forward and backward")
def eval_between(setup: Setup) -> None:
    def run(net: Net) -> Any:
        y = net()
        net.module.eval()
        loss(y).backward()
        return net.grads(), net.buffers(), [m.training for m in net.module.modules()][:1]

    setup.compare(run, setup.nets(conv(nn.BatchNorm2d, tanh, lambda c: nn.Dropout(0.3))))


@case("instance norm with running statistics")
def instance_norm(setup: Setup) -> None:
    make = conv(lambda c: nn.InstanceNorm2d(c, affine=True, track_running_stats=True), tanh)
    setup.compare(Net.step, setup.nets(make))


@case("spectral norm (buffers of the power iteration)")
def spectral(setup: Setup) -> None:
    def make(c: int) -> nn.Module:
        return nn.Sequential(spectral_norm(nn.Conv2d(c, c, 3, padding=1).double()), nn.Tanh())

    setup.compare(Net.step, setup.nets(make))


@case("weight norm (a parametrised weight)")
def weight_normed(setup: Setup) -> None:
    def make(c: int) -> nn.Module:
        return nn.Sequential(weight_norm(nn.Conv2d(c, c, 3, padding=1)), nn.Tanh())

    setup.compare(Net.step, setup.nets(make))


class Counting(nn.Module):
    """A sub-network that depends on buffers which it changes in two ways."""

    calls: Tensor
    mean: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(5000))

    def forward(self, x: Tensor) -> Tensor:
        """Scale by the buffers, then change them."""
        y = self.conv(x).tanh() * (1 + self.calls) + self.mean.sum()
        with torch.no_grad():
            self.calls = self.calls + 1
            self.mean += x.mean()
        return y


@case("a buffer that the sub-network replaces, one that it writes into")
def own_buffers(setup: Setup) -> None:
    setup.compare(lambda net: [net.step(), net.step()], setup.nets(Counting))
