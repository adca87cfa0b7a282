"""What every case needs: a plain network and the same by an engine, and their comparison."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from revgrad.benchmarks.reliability.networks import Branch, Plan, build_plain, make_plan


class MismatchError(AssertionError):
    """The engine computed something else than plain autograd, and said nothing."""


class NotOfferedError(Exception):
    """The engine has no interface for what the case asks."""


def branch(channels: int) -> nn.Module:
    """The default sub-network: smooth, so that float64 comparisons are sharp."""
    return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.Tanh())


class Net:
    """One network with its inputs.

    Attributes:
        module: The network.
        branches: Its sub-networks, in the order that all engines share.
        x: The input.
        side: Side inputs.
    """

    def __init__(self, module: nn.Module, plan: Plan, x: Tensor, side: tuple[Tensor, ...]) -> None:
        self.module = module
        self.branches = plan.branches()
        self.x = x.detach().clone().requires_grad_(x.requires_grad)
        self.side = tuple(s.detach().clone().requires_grad_(s.requires_grad) for s in side)

    def __call__(self, x: Tensor | None = None) -> Tensor:
        y: Tensor = self.module(self.inside() if x is None else x, *self.side)
        return y

    def inside(self) -> Tensor:
        """The input as a result of another operation, as it is in the middle of a network.

        Some libraries are wrong for a leaf; that is a case of its own and must not spoil the rest.
        """
        return self.x * 1 if self.x.requires_grad else self.x

    def parameters(self) -> list[nn.Parameter]:
        """All parameters, each once, in the order that all engines share."""
        return list(nn.ModuleList(self.branches).parameters())

    def buffers(self) -> list[Tensor]:
        """All buffers."""
        return list(nn.ModuleList(self.branches).buffers())

    def leaves(self) -> list[Tensor]:
        """All that may get a gradient."""
        return [self.x, *self.side, *self.parameters()]

    def grads(self) -> list[Tensor | None]:
        """Copies of all gradients."""
        return [None if t.grad is None else t.grad.clone() for t in self.leaves()]

    def step(self) -> list[Any]:
        """One training step: the output, all gradients and all buffers."""
        y = self()
        loss(y).backward()
        return [y.detach(), self.grads(), self.buffers()]


def loss(y: Tensor) -> Tensor:
    """A scalar whose gradient differs at every element."""
    weights = torch.linspace(-1, 1, max(y.numel(), 1), dtype=torch.float64)[: y.numel()]
    return (y.double() * weights.view_as(y)).sum() + y.double().pow(2).sum() / 7


class Setup:
    """Gives a case its networks.

    Args:
        build: The engine: makes a network of a plan.
        kind: Which network, one of `KINDS`.
    """

    def __init__(self, build: Callable[[Plan], nn.Module], kind: str) -> None:
        self.build = build
        self.kind = kind

    def nets(
        self,
        branch: Branch = branch,
        *,
        channels: int = 8,
        size: tuple[int, ...] = (2, 8, 8),
        dtype: torch.dtype = torch.float64,
        needs_grad: bool = True,
        alter: Callable[[Plan], None] = lambda plan: None,
    ) -> tuple[Net, Net]:
        """The plain network and the engine's, equal in weights and inputs.

        Args:
            branch: Makes a sub-network of so many channels.
            channels: Channels of the input.
            size: Batch size and spatial size.
            dtype: Of weights and inputs.
            needs_grad: Whether the input needs a gradient.
            alter: Changes the sub-networks before they are put together.
        """
        torch.manual_seed(0)
        plan = make_plan(self.kind, branch, channels, dtype)
        alter(plan)
        x = torch.randn(size[0], channels, *size[1:], dtype=dtype)
        x.requires_grad_(needs_grad)
        scale = torch.rand(size[0], 1, 1, 1, dtype=dtype, requires_grad=True)
        side = (scale,) if self.kind == "side" else ()
        copied = plan.copy()
        plain, tested = build_plain(plan), self.build(copied)
        return Net(plain, plan, x, side), Net(tested, copied, x, side)

    def compare(
        self,
        run: Callable[[Net], Any],
        nets: tuple[Net, Net] | None = None,
        tolerance: float = 1e-9,
    ) -> None:
        """Run the same on both networks, with the same random numbers, and compare all results.

        Args:
            run: Gives tensors in any nesting.
            nets: By default those of `nets()`.
            tolerance: Relative to the largest result.
        """
        results = []
        for net in nets or self.nets():
            torch.manual_seed(1)
            random.seed(1)
            results.append(tree_leaves((run(net), torch.get_rng_state(), random.random())))
        expected, found = results
        expect_equal(expected, found, tolerance)


def expect_equal(expected: list[Any], found: list[Any], tolerance: float = 1e-9) -> None:
    """Compare leaf by leaf.

    Raises:
        MismatchError: If anything differs by more than the tolerance.
    """
    if len(expected) != len(found):
        raise MismatchError(f"{len(found)} results instead of {len(expected)}")
    floats = [t for t in expected if isinstance(t, Tensor) and t.is_floating_point()]
    scale = max((t.abs().max().item() for t in floats if t.numel()), default=1.0)
    for i, (a, b) in enumerate(zip(expected, found, strict=True)):
        if not isinstance(a, Tensor) or not isinstance(b, Tensor):
            if type(a) is not type(b) or a != b:
                raise MismatchError(f"result {i} is {_short(b)} instead of {_short(a)}")
        elif a.shape != b.shape or a.dtype != b.dtype:
            raise MismatchError(f"result {i} is {_short(b)} instead of {_short(a)}")
        elif a.numel() and not (a.double() - b.double()).abs().max().item() <= tolerance * scale:
            off = (a.double() - b.double()).norm() / a.double().norm()
            raise MismatchError(f"result {i} is off by {off:.1e}")


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"
    return repr(value)[:60]
