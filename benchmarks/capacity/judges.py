"""Whether a size fits: estimated without a GPU, tried out on one."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from functools import cache
from statistics import median
from typing import Protocol

import torch

from revgrad.benchmarks.capacity.network import OPTIMIZER, Step, autocast_type, loss, network
from revgrad.benchmarks.capacity.settings import Question, Settings
from revgrad.memory import MemoryEstimate, estimate


class Judge(Protocol):
    """Knows one method on one question."""

    def peak(self, size: int) -> int:
        """Bytes of tensors at the peak of a step."""

    def fits(self, size: int) -> bool:
        """Whether steps stay within the budget."""

    def seconds(self, size: int) -> float | None:
        """Time of a step, where that can be measured."""


class Estimate:
    """Estimates on tensors without data; nothing is known of time."""

    def __init__(self, method: str, question: Question, settings: Settings) -> None:
        model = network(method, question, settings)
        dtype = autocast_type(settings)
        self._budget = settings.budget

        @cache
        def estimated(size: int) -> MemoryEstimate:
            return estimate(model, question.shape(size), OPTIMIZER, dtype, loss=loss)

        self._estimated = estimated

    def peak(self, size: int) -> int:
        return self._estimated(size).allocated

    def fits(self, size: int) -> bool:
        return self._estimated(size).fits(self._budget)

    def seconds(self, size: int) -> float | None:
        return None


class Trial:
    """Real steps on a GPU, whose allocator may reserve no more than the budget."""

    def __init__(self, method: str, question: Question, settings: Settings) -> None:
        self._settings = settings
        self._make: Callable[[int], Step] = lambda size: Step(method, question, settings, size)

    def peak(self, size: int) -> int:
        torch.cuda.reset_peak_memory_stats()
        if not self.fits(size):
            return 2 * self._settings.budget
        return torch.cuda.max_memory_allocated()

    def fits(self, size: int) -> bool:
        # Two: the optimizer makes its state in the first.
        return self._run(size, 2) is not None

    def seconds(self, size: int) -> float | None:
        times = self._run(size, 2 + self._settings.repeats)
        return None if times is None else median(times[2:])

    def _run(self, size: int, steps: int) -> list[float] | None:
        """Seconds of each step, or None if memory did not suffice."""
        self._free()
        try:
            step = self._make(size)
            return [_seconds(step) for _ in range(steps)]
        except torch.OutOfMemoryError:
            return None

    def _free(self) -> None:
        """Give back all that earlier trials left, and set the budget."""
        gc.collect()
        if self._settings.device == "cuda":
            torch.cuda.empty_cache()
            total = torch.cuda.mem_get_info()[1]
            torch.cuda.set_per_process_memory_fraction(min(1.0, self._settings.budget / total))


def _seconds(step: Step) -> float:
    before = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - before
