"""Ways to call the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from revgrad.benchmarks.reliability.case import case, conv, tanh
from revgrad.benchmarks.reliability.setup import (
    Net,
    Setup,
    loss,
)


@case("two losses on one output, two backward passes")
def two_losses(setup: Setup) -> None:
    def run(net: Net) -> Any:
        y = net()
        loss(y).backward(retain_graph=True)
        y.sin().sum().backward()
        return net.grads()

    setup.compare(run)


@case("retain_graph and the same backward pass again")
def retain_graph(setup: Setup) -> None:
    def run(net: Net) -> Any:
        total = loss(net())
        total.backward(retain_graph=True)
        total.backward()
        return net.grads()

    setup.compare(run, setup.nets(conv(nn.BatchNorm2d, tanh, lambda c: nn.Dropout(0.2))))


@case("a second backward pass without retain_graph: an error, as in plain autograd")
def no_retain_graph(setup: Setup) -> None:
    def run(net: Net) -> Any:
        total = loss(net())
        total.backward()
        try:
            total.backward()
        except RuntimeError:
            return "refused"
        return "accepted"

    setup.compare(run)


@case("torch.autograd.grad of the parameters")
def autograd_grad(setup: Setup) -> None:
    setup.compare(lambda net: torch.autograd.grad(loss(net()), net.parameters()))


@case("torch.autograd.grad of the input alone")
def autograd_grad_input(setup: Setup) -> None:
    def run(net: Net) -> Any:
        return torch.autograd.grad(loss(net()), net.x), net.grads()

    setup.compare(run)


@case("torch.autograd.grad of one parameter in the middle, twice")
def autograd_grad_middle(setup: Setup) -> None:
    def run(net: Net) -> Any:
        total = loss(net())
        middle = net.parameters()[len(net.parameters()) // 2]
        first = torch.autograd.grad(total, middle, retain_graph=True)
        return first, torch.autograd.grad(total, net.parameters())

    setup.compare(run)


@case("backward(inputs=[...]) leaves the others alone")
def backward_inputs(setup: Setup) -> None:
    def run(net: Net) -> Any:
        loss(net()).backward(inputs=net.parameters()[2:4])
        return net.grads()

    setup.compare(run)


@case("gradient accumulation over two batches")
def accumulation(setup: Setup) -> None:
    def run(net: Net) -> Any:
        loss(net()).backward()
        loss(net(net.x * 0.5)).backward()
        return net.grads()

    setup.compare(run)


@case("double backward (gradient penalty)")
def double_backward(setup: Setup) -> None:
    def run(net: Net) -> Any:
        y = net()
        (g,) = torch.autograd.grad(loss(y), net.x, create_graph=True)
        (g.pow(2).sum() + loss(y)).backward()
        return net.grads()

    setup.compare(run)


@case("torch.func.grad over the network")
def func_grad(setup: Setup) -> None:
    def run(net: Net) -> Any:
        own = {n: p.detach() for n, p in net.module.named_parameters()}
        side = tuple(s.detach() for s in net.side)

        def total(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
            return loss(torch.func.functional_call(net.module, parameters, (x, *side)))

        _, dx = torch.func.grad(total, argnums=(0, 1))(own, net.x.detach())
        return dx

    setup.compare(run)


@case("torch.func.vmap over the network")
def func_vmap(setup: Setup) -> None:
    def run(net: Net) -> Any:
        xs = torch.stack((net.x.detach(), net.x.detach() * 2))
        return torch.func.vmap(lambda x: net(x))(xs).detach()

    setup.compare(run)


@case("forward-mode differentiation")
def forward_mode(setup: Setup) -> None:
    def run(net: Net) -> Any:
        x = net.x.detach()
        return torch.func.jvp(lambda x: net(x), (x,), (torch.ones_like(x),))[1].detach()

    setup.compare(run)
