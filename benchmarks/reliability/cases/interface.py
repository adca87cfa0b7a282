"""What only a sequence with an interface for it can do."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from revgrad.benchmarks.reliability.case import case
from revgrad.benchmarks.reliability.setup import (
    Net,
    NotOfferedError,
    Setup,
    expect_equal,
    loss,
)


@case("side inputs: gradients, keywords, values that are no tensors", kinds=("side",))
def side_inputs(setup: Setup) -> None:
    def run(net: Net) -> Any:
        y = net.module(net.x, scale=net.side[0], power=2)
        loss(y).backward()
        return y.detach(), net.grads()

    setup.compare(run)


@case("a side input without gradient, of integers", kinds=("side",))
def integer_side_input(setup: Setup) -> None:
    def run(net: Net) -> Any:
        y = net.module(net.x, torch.tensor([2, 3]).view(2, 1, 1, 1))
        loss(y).backward()
        return y.detach(), net.grads()

    setup.compare(run)


def _needs_inverse(module: nn.Module) -> Any:
    if not hasattr(module, "inverse"):
        raise NotOfferedError("no inverse")
    return module


@case("inverse(forward(x)) is x")
def inverse(setup: Setup) -> None:
    _, tested = setup.nets()
    module = _needs_inverse(tested.module)
    with torch.no_grad():
        back = module.inverse(tested(), *tested.side)
    expect_equal([tested.x.detach()], [back], tolerance=1e-10)
