"""One network with one input in one precision, and its gradients in any way of computing them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from revgrad.benchmarks.accuracy.networks import NETWORKS, PRECISIONS
from revgrad.benchmarks.accuracy.settings import Plan
from revgrad.benchmarks.peers import ADAPTORS, Couplings

Wrap = Callable[[Couplings], nn.Module]


@dataclass(frozen=True)
class Gradients:
    """Of all weights, one behind the other, and of the input; float64."""

    weights: Tensor
    input: Tensor

    def errors(self, right: Gradients) -> dict[str, float]:
        """Their distance from the right ones, relative to the size of those (L2)."""
        pairs = {"weights": (self.weights, right.weights), "input": (self.input, right.input)}
        return {
            name: (torch.linalg.vector_norm(found - b) / torch.linalg.vector_norm(b)).item()
            for name, (found, b) in pairs.items()
        }


class Problem:
    """A network, an input and an output gradient.

    Of two depths with the same seed the smaller network is the beginning of the larger one.
    """

    def __init__(self, plan: Plan, network: str, precision: str, depth: int, seed: int) -> None:
        chosen = PRECISIONS[precision]
        torch.manual_seed(seed)
        modules = [NETWORKS[network].make(plan.channels // 2) for _ in range(depth)]
        modules = [module.to(plan.device, chosen.dtype) for module in modules]
        self.couplings: Couplings = list(zip(modules[::2], modules[1::2], strict=True))
        generator = torch.Generator().manual_seed(seed)
        shape = (plan.batch, plan.channels, plan.size, plan.size)
        tensors = (torch.randn(shape, generator=generator) for _ in range(2))
        self.x, self.dy = (t.to(plan.device, chosen.dtype) for t in tensors)
        self.autocast = chosen.autocast

    def gradients(self, wrap: Wrap) -> Gradients:
        """In the problem's precision, of the module that `wrap` makes of the couplings."""
        couplings = copy.deepcopy(self.couplings)
        return _gradients(wrap, couplings, self.x, self.dy, self.autocast)

    def gradients_in_float64(self) -> Gradients:
        """By plain autograd of the same weights, input and output gradient."""
        couplings = [(f.double(), g.double()) for f, g in copy.deepcopy(self.couplings)]
        return _gradients(
            ADAPTORS["plain"].wrap, couplings, self.x.double(), self.dy.double(), autocast=False
        )


def _gradients(
    wrap: Wrap, couplings: Couplings, x: Tensor, dy: Tensor, autocast: bool
) -> Gradients:
    x = x.detach().requires_grad_()
    with torch.autocast(x.device.type, torch.bfloat16, autocast):
        # memcnn doubles the gradient of a leaf, and frees what it is given.
        y = wrap(couplings)(x * 1)
    y.backward(dy)
    parameters = [p for pair in couplings for module in pair for p in module.parameters()]
    return Gradients(torch.cat([_gradient(p) for p in parameters]), _gradient(x))


def _gradient(leaf: Tensor) -> Tensor:
    grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
    return grad.double().flatten()
