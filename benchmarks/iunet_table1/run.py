"""A whole run: every variant at every depth, in memory and in time."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from revgrad.benchmarks.iunet_table1.networks import VARIANTS
from revgrad.benchmarks.iunet_table1.settings import Plan
from revgrad.benchmarks.sequence.process import TaskError, run_task
from revgrad.benchmarks.sequence.run import Finding, Round, Show, take_times

Row = Finding  # depth: coupling blocks of each level and side

_WORKER = "revgrad.benchmarks.iunet_table1.worker"


def number_of_steps(plan: Plan) -> int:
    """How often `run` reports progress."""
    return len(plan.depths) * (len(plan.variants) + plan.repeats)


def run(plan: Plan, show: Show) -> list[Row]:
    """Measure everything; `show` is told after each step what it was."""
    rows = []
    for depth in plan.depths:
        found = [_memory_row(plan, depth, variant, show) for variant in plan.variants]
        measured = [row for row in found if row.memory is not None]
        rounds = take_times(measured, plan.settings, plan.repeats, show, _WORKER)
        for row in measured if rounds else ():
            row.time = summary(row.variant, rounds)
        rows += found
    return rows


def _memory_row(plan: Plan, depth: int, variant: str, show: Show) -> Row:
    row = Row(variant, depth)
    state = VARIANTS[variant].available()
    if not state:
        row.status, row.reason = "missing", state.reason
    else:
        try:
            row.memory = run_task(
                "memory", plan.settings, worker=_WORKER, depth=depth, variant=variant
            )
        except TaskError as error:
            row.status, row.reason = "failed", str(error)
    show(f"memory, depth {depth}, {variant}: {row.status}")
    return row


def summary(variant: str, rounds: Sequence[Round]) -> dict[str, Any]:
    """Seconds of a step by clock, "wall" and "cpu", against the same modules trained plainly.

    Returns:
        For each clock the shortest round and all of them; and if the base was measured, too, the
        shortest by the base's shortest ("_ratio"), which other processes disturb least, and the
        median of the ratios within a round ("_ratio_median").
    """
    base = VARIANTS[variant].base
    time: dict[str, Any] = {}
    for clock in ("wall", "cpu"):
        seconds = [one[clock][variant] for one in rounds]
        time[clock] = min(seconds)
        time[f"{clock}_rounds"] = seconds
        if base in rounds[0][clock]:
            bases = [one[clock][base] for one in rounds]
            time[f"{clock}_ratio"] = min(seconds) / min(bases)
            ratios = [a / b for a, b in zip(seconds, bases, strict=True)]
            time[f"{clock}_ratio_median"] = median(ratios)
    return time
