"""Hooks on parameters and modules, and steps inside the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from revgrad.benchmarks.reliability.case import case
from revgrad.benchmarks.reliability.setup import (
    Net,
    Setup,
    loss,
)


@case("hooks on parameters fire once")
def parameter_hooks(setup: Setup) -> None:
    def run(net: Net) -> Any:
        fired: list[int] = []
        for i, p in enumerate(net.parameters()):
            p.register_hook(lambda g, i=i: fired.append(i))
            p.register_post_accumulate_grad_hook(lambda p, i=i: fired.append(-i))
        return net.step(), sorted(fired)

    setup.compare(run)


@case("forward hooks on modules see the same values")
def module_hooks(setup: Setup) -> None:
    def run(net: Net) -> Any:
        seen: list[Tensor] = []

        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            seen.append(output.detach().clone())

        for b in net.branches:
            b.register_forward_hook(hook)
        net()
        return seen

    setup.compare(run)


@case("full backward hooks on a sub-network")
def backward_hooks(setup: Setup) -> None:
    def run(net: Net) -> Any:
        seen: list[Tensor] = []

        def hook(module: nn.Module, grad_input: Any, grad_output: Any) -> None:
            seen.append(grad_output[0].clone())

        net.branches[0].register_full_backward_hook(hook)
        return net.step(), seen

    setup.compare(run)


@case("an optimizer step inside the backward pass")
def step_in_backward(setup: Setup) -> None:
    def run(net: Net) -> Any:
        def update(p: Tensor) -> None:
            with torch.no_grad():
                p -= 0.01 * p.grad  # type: ignore[operator]
            p.grad = None

        for p in net.parameters():
            p.register_post_accumulate_grad_hook(update)
        for _ in range(3):
            loss(net()).backward()
        return net.parameters()

    setup.compare(run)
