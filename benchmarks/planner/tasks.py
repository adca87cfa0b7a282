"""The measurements themselves, each of which has a process to itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from revgrad.benchmarks.planner.networks import Schedule, network
from revgrad.benchmarks.sequence.settings import Settings
from revgrad.benchmarks.sequence.tasks import in_turns
from revgrad.benchmarks.sequence.workload import ModuleStep, couplings
from revgrad.memory import measure
from revgrad.memory import plan as planned


def plan(settings: Settings, depth: int, budget: float, repeats: int) -> dict[str, Any]:
    """What `revgrad.memory.plan` finds: the schedule, the peak and the seconds of a step."""
    step = made(settings, depth, "revgrad", budget)
    dtype = torch.bfloat16 if settings.dtype == "bfloat16" else None
    found = planned(step.module, step.x, float(budget), dtype=dtype, repeats=repeats)
    return {"schedule": found.schedules[""], "peak": found.peak, "seconds": found.seconds}


def memory(
    settings: Settings, depth: int, variant: str, budget: float, schedule: Schedule = "invert"
) -> dict[str, Any]:
    """A `MemoryReport` of a step as a dictionary."""
    step = made(settings, depth, variant, budget, schedule)
    return measure(step, step.module, device=settings.device).as_dict()


def timing(
    settings: Settings, depth: int, points: Sequence[dict[str, Any]], repeats: int
) -> Iterator[dict[str, Any]]:
    """Seconds of a step for each point, in rounds in which all take turns in random order."""
    steps = {
        point["name"]: made(
            settings, depth, point["variant"], point["budget"], point.get("schedule", "invert")
        )
        for point in points
    }
    yield from in_turns(steps, repeats, settings.device)


def made(
    settings: Settings, depth: int, variant: str, budget: float, schedule: Schedule = "invert"
) -> ModuleStep:
    """A training step of a variant."""
    return ModuleStep(network(variant, couplings(settings, depth), budget, schedule), settings)
