"""The measurements themselves, each of which has a process to itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from revgrad.benchmarks.iunet_table1.networks import VARIANTS, body
from revgrad.benchmarks.sequence.settings import Settings
from revgrad.benchmarks.sequence.tasks import in_turns
from revgrad.benchmarks.sequence.workload import ModuleStep, memory_format
from revgrad.memory import measure
from revgrad.optim import step_in_backward


def memory(settings: Settings, depth: int, variant: str) -> dict[str, Any]:
    """A `MemoryReport` of a step as a dictionary."""
    step = made(settings, depth, variant)
    return measure(step, step.module, device=settings.device).as_dict()


def timing(
    settings: Settings, depth: int, variants: Sequence[str], repeats: int
) -> Iterator[dict[str, Any]]:
    """Seconds of a step for each variant, in rounds in which all take turns in random order."""
    steps = {variant: made(settings, depth, variant) for variant in variants}
    yield from in_turns(steps, repeats, settings.device)


def made(settings: Settings, depth: int, variant: str) -> ModuleStep:
    """A training step of a variant's body."""
    net = body(variant, settings.channels, depth).to(settings.device)
    net.to(memory_format=memory_format(settings))  # type: ignore[call-overload]
    return (SteppingStep if VARIANTS[variant].steps else ModuleStep)(net, settings)


class SteppingStep(ModuleStep):
    """A training step whose optimizer, plain SGD, steps inside the backward pass."""

    def __init__(self, module: nn.Module, settings: Settings) -> None:
        super().__init__(module, settings)
        # The gradients of a sum over all pixels are large, and weights shall stay what they are.
        self.optimizer = torch.optim.SGD(module.parameters(), 1e-9)
        step_in_backward(self.optimizer)

    def __call__(self) -> None:
        super().__call__()
        self.optimizer.step()
