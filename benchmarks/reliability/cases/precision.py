"""Dtypes, layouts and sizes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from revgrad.benchmarks.reliability.case import case
from revgrad.benchmarks.reliability.networks import Plan
from revgrad.benchmarks.reliability.setup import (
    Net,
    Setup,
    loss,
)


@case("float64 gradients")
def float64(setup: Setup) -> None:
    setup.compare(Net.step)


@case("float32 gradients")
def float32(setup: Setup) -> None:
    setup.compare(Net.step, setup.nets(dtype=torch.float32), tolerance=1e-4)


@case("bfloat16 module, bfloat16 input")
def bfloat16(setup: Setup) -> None:
    setup.compare(Net.step, setup.nets(dtype=torch.bfloat16), tolerance=0.1)


@case("float16 module, float16 input")
def float16(setup: Setup) -> None:
    setup.compare(Net.step, setup.nets(dtype=torch.float16), tolerance=2e-2)


@case("channels-last: gradients and layout")
def channels_last(setup: Setup) -> None:
    def run(net: Net) -> Any:
        net.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        y = net(net.x.to(memory_format=torch.channels_last))
        loss(y).backward()
        return y.detach(), net.grads(), y.is_contiguous(memory_format=torch.channels_last)

    setup.compare(run)


@case("odd number of channels", kinds=("sequence",))
def odd_channels(setup: Setup) -> None:
    class Between(nn.Module):
        def __init__(self, c_in: int, c_out: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(c_in, c_out, 1).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).tanh()

    def alter(plan: Plan) -> None:
        plan.outer = [(Between(3, 4), Between(4, 3)) for _ in range(3)]

    setup.compare(Net.step, setup.nets(channels=7, alter=alter))


@case("empty batch")
def empty_batch(setup: Setup) -> None:
    setup.compare(Net.step, setup.nets(size=(0, 8, 8)))


@case("batch of one, non-contiguous input and gradient")
def non_contiguous(setup: Setup) -> None:
    def run(net: Net) -> Any:
        y = net(net.x.transpose(2, 3))
        (y.transpose(2, 3) * 2).sum().backward()
        return y.detach(), net.grads()

    setup.compare(run, setup.nets(size=(1, 8, 8)))
