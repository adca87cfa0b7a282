"""Time a case: its contestants take turns, and the shortest time of each counts."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from revgrad.benchmarks.kernels.cases import Case, Plan, Run, cases

# A measurement calls a function so often that it takes this long, in seconds: above the clock's
# resolution and what a GPU needs to begin, and no longer, so that others seldom interrupt it.
_LONG_ENOUGH = {"cpu": 2e-4, "cuda": 5e-3}
_MOST_CALLS = 200
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # options of mallopt


@dataclass(frozen=True)
class Row:
    """What was found of a case.

    Attributes:
        operator: What is computed.
        what: Shape, type and memory format.
        unit: What times are multiples of.
        seconds: Of the unit.
        ours: The kernel's time in units.
        rivals: Those of eager PyTorch, by name; None where it failed.
        goal: The most that `ours` shall take.
        met: Whether it takes no more; None without a goal.
    """

    operator: str
    what: str
    unit: str
    seconds: float
    ours: float
    rivals: Mapping[str, float | None]
    goal: float | None
    met: bool | None


def run(plan: Plan, step: Callable[[str], None] = lambda text: None) -> list[Row]:
    """Measure all cases, with the plan's number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    rows = []
    try:
        with memory_kept():
            for case in cases(plan):
                rows.append(measure(case, plan))
                step(f"{case.operator}, {case.what}: {rows[-1].ours:.2f} x {case.unit}")
    finally:
        torch.set_num_threads(before)
    return rows


@contextmanager
def memory_kept() -> Iterator[None]:
    """Let freed memory stay with the process.

    Else the C library now gives large blocks back and now does not, and whose turn it is to fetch
    pages from the system pays several times the time of a kernel.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    set_option = mallopt or (lambda option, value: None)
    set_option(_MMAP_MAX, 0)
    set_option(_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        set_option(_MMAP_MAX, 65536)
        set_option(_TRIM_THRESHOLD, 128 * 1024)


def measure(case: Case, plan: Plan) -> Row:
    """Time one case."""
    contestants = {"unit": case.base, "ours": case.ours, **case.rivals}
    calls: dict[str, int] = {}
    for name, function in contestants.items():
        try:
            calls[name] = _calls(function, plan.device)
        except RuntimeError:  # a rival that does not take this type, device or format
            if name in ("unit", "ours"):
                raise
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(plan.repeats):
        for name, count in calls.items():
            best[name] = min(best[name], seconds(contestants[name], count, plan.device))
    unit = best["unit"]
    rivals = {name: best[name] / unit if name in best else None for name in case.rivals}
    ours = best["ours"] / unit
    met = None if case.goal is None else ours <= case.goal
    return Row(case.operator, case.what, case.unit, unit, ours, rivals, case.goal, met)


def seconds(function: Run, calls: int, device: str) -> float:
    """The mean time of a call among several in a row."""
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        function()
    _synchronize(device)
    return (time.perf_counter() - start) / calls


def _calls(function: Run, device: str) -> int:
    """How many calls take long enough; the first two, which warm up, do not count."""
    seconds(function, 2, device)
    return max(1, min(_MOST_CALLS, int(_LONG_ENOUGH[device] / seconds(function, 1, device))))


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
