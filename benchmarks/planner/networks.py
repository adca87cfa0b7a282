"""The same couplings within a budget, in every way that there is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from revgrad import ReversibleSequence
from revgrad.benchmarks.peers import ADAPTORS, Couplings

Couple = Callable[[nn.Module, nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
Schedule = str | dict[str, str]

ABOUT: Mapping[str, str] = {
    "revgrad": "ReversibleSequence with the schedule that revgrad.memory.plan finds for the budget",
    "checkpoint": "torch.utils.checkpoint around all couplings but the last; the budget is their "
    "share",
    "checkpoint-selective": "torch.utils.checkpoint around each coupling, which keeps what "
    "convolutions give in the last of them; the budget is their share",
    "compiled": "torch.compile of plain couplings, with the budget as activation_memory_budget",
}
BASE = "plain"  # what the others' times are compared with


def network(variant: str, pairs: Couplings, budget: float, schedule: Schedule) -> nn.Module:
    """The couplings run within a budget; `schedule` is revgrad's."""
    if variant == "revgrad":
        net = ADAPTORS["revgrad"].wrap(pairs)
        assert isinstance(net, ReversibleSequence)
        net.schedule = schedule
        return net
    if variant == "compiled":
        return _Budgeted(pairs, budget)
    stored = round(budget * len(pairs))
    if variant == "checkpoint":
        again: Callable[..., Any] = functools.partial(checkpoint, use_reentrant=False)
        return _Mixed(pairs, [again] * (len(pairs) - stored) + [_plainly] * stored)
    if variant == "checkpoint-selective":
        again = functools.partial(checkpoint, use_reentrant=False)
        keeping = functools.partial(again, context_fn=_keeping_convolutions)
        return _Mixed(pairs, [again] * (len(pairs) - stored) + [keeping] * stored)
    return ADAPTORS[variant].wrap(pairs)


def _keeping_convolutions() -> Any:
    return create_selective_checkpoint_contexts([torch.ops.aten.convolution.default])


def _plainly(couple: Couple, *args: Any) -> Any:
    return couple(*args)


def _couple(f: nn.Module, g: nn.Module, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
    y1 = x1 + f(x2)
    return y1, x2 + g(y1)


class _Mixed(nn.Module):
    """Couplings of which each is called in a way of its own."""

    def __init__(self, pairs: Couplings, ways: list[Callable[..., Any]]) -> None:
        super().__init__()
        self.sub_networks = nn.ModuleList(module for pair in pairs for module in pair)
        self.ways = ways

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, dim=1)
        pairs = zip(self.sub_networks[::2], self.sub_networks[1::2], strict=True)
        for way, (f, g) in zip(self.ways, pairs, strict=True):
            x1, x2 = way(_couple, f, g, x1, x2)
        return torch.cat([x1, x2], dim=1)


class _Budgeted(nn.Module):
    """Compiled under an activation memory budget, of which PyTorch has one for all."""

    def __init__(self, pairs: Couplings, budget: float) -> None:
        super().__init__()
        self.compiled = ADAPTORS["compiled"].wrap(pairs)
        self.budget = budget

    def forward(self, x: Tensor) -> Tensor:
        import torch._functorch.config as config

        with config.patch(activation_memory_budget=self.budget):
            y: Tensor = self.compiled(x)
            return y
