"""The measurements themselves, each of which has a process to itself."""

from __future__ import annotations

import gc
import platform
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from revgrad.benchmarks.peers import Couplings
from revgrad.benchmarks.sequence.settings import Settings
from revgrad.benchmarks.sequence.workload import Step
from revgrad.memory import measure


def memory(settings: Settings, depth: int, variant: str) -> dict[str, Any]:
    """Peak memory of a step, growth of the process, and how often each sub-network ran."""
    step, growth = _first_step(settings, depth, variant)
    report = measure(step, step.module, device=settings.device, warmup=0)
    return {
        "memory": report.as_dict(),
        "growth": growth,
        "evaluations": _evaluations(step, step.pairs),
    }


def growth(settings: Settings, depth: int, variant: str) -> int | None:
    """By how many bytes the process grew in its first step, or None if that is not known."""
    return _first_step(settings, depth, variant)[1]


def _first_step(settings: Settings, depth: int, variant: str) -> tuple[Step, int | None]:
    # Libraries that load in the first step of all shall not count as growth.
    tiny = replace(settings, channels=4, size=4, batch=1)
    Step(variant, tiny, 2)()
    step = Step(variant, settings, depth)
    # No warm-up at full size: an allocator keeps some of what it had, and would not grow again.
    before = peak_resident()
    step()
    after = peak_resident()
    return step, None if before is None or after is None else after - before


def timing(
    settings: Settings, depth: int, variants: Sequence[str], repeats: int
) -> Iterator[dict[str, Any]]:
    """Seconds of a step for each variant, in rounds in which all take turns in random order.

    Yields:
        After every round the seconds of wall clock and of processor time by variant.
    """
    steps = {variant: Step(variant, settings, depth) for variant in variants}
    yield from in_turns(steps, repeats, settings.device)


def in_turns(
    steps: Mapping[str, Callable[[], None]], repeats: int, device: str
) -> Iterator[dict[str, Any]]:
    """Time steps by name, after one warm-up of each; yields what `timing` does."""
    for step in steps.values():
        step()
    order = random.Random(0)
    for _ in range(repeats):
        turn = order.sample(list(steps), len(steps))
        seconds = {name: _seconds(steps[name], device) for name in turn}
        yield {
            "wall": {name: seconds[name][0] for name in steps},
            "cpu": {name: seconds[name][1] for name in steps},
        }


def _seconds(step: Callable[[], None], device: str) -> tuple[float, float]:
    gc.collect()
    _finish(device)
    wall, processor = time.perf_counter(), time.process_time()
    step()
    _finish(device)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return round(wall, 6), round(processor, 6)


def _finish(device: str) -> None:
    """Wait for what was queued."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _evaluations(step: Callable[[], None], pairs: Couplings) -> float | None:
    """How often a step evaluates each sub-network on average; None if that does not show.

    Counted at the first module inside of it, because some libraries call a sub-network's `forward`
    and so pass its hooks by. Compiled code knows no hooks that were registered later.
    """
    count = 0

    def seen(*_: object) -> None:
        nonlocal count
        count += 1

    firsts = [_innermost(module) for pair in pairs for module in pair]
    handles = [module.register_forward_hook(seen) for module in firsts]
    step()
    for handle in handles:
        handle.remove()
    return count / len(firsts) if count else None


def _innermost(module: nn.Module) -> nn.Module:
    first = next(module.children(), None)
    return module if first is None else _innermost(first)


def peak_resident() -> int | None:
    """Most bytes that this process has had in memory, or None where the system does not tell.

    Not from `getrusage` on Linux: there a new process starts with its parent's peak.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return _peak_resident_elsewhere()
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _peak_resident_elsewhere() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024
