"""The measurements themselves, each of which has a process to itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from revgrad.benchmarks.iunet_table1.networks import body
from revgrad.benchmarks.sequence.settings import Settings
from revgrad.benchmarks.sequence.tasks import in_turns
from revgrad.benchmarks.sequence.workload import ModuleStep, memory_format
from revgrad.memory import measure


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
    return ModuleStep(net, settings)
