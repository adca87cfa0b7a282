"""A whole run: every variant at every depth, in memory and in time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from revgrad.benchmarks.peers import available
from revgrad.benchmarks.sequence.process import WORKER, TaskError, run_task
from revgrad.benchmarks.sequence.settings import Plan, Settings

BASE = "plain"  # what the others' times are compared with

# glibc's allocator raises this threshold as it goes, and then large blocks share a heap with small
# ones, which breaks it into pieces. Held at its first value, each large block is mapped by itself.
UNBROKEN = {"MALLOC_MMAP_THRESHOLD_": "131072"}

Show = Callable[[str], None]
Round = dict[str, dict[str, float]]  # seconds by clock and variant


@dataclass
class Finding:
    """What was found out about one variant at one depth.

    Attributes:
        variant: Its name.
        depth: How deep the network was.
        status: "measured", "missing" (not installed) or "failed".
        reason: Why it was not measured.
        memory: A `MemoryReport` as a dictionary, in bytes.
        time: A summary of the rounds.
    """

    variant: str
    depth: int
    status: str = "measured"
    reason: str = ""
    memory: dict[str, Any] | None = None
    time: dict[str, Any] | None = None


@dataclass
class Row(Finding):
    """What was found out about one adaptor with a number of sub-networks, its depth.

    Attributes:
        above: Bytes at the peak besides parameters and gradients, in activations.
        growth: By how many bytes the process grew in its first step.
        unbroken_growth: The same with an allocator whose heap can't break into pieces.
        evaluations: How often a step ran each sub-network; None if that could not be counted.
        time: Medians in seconds, ratios to plain, and all rounds.
    """

    above: float | None = None
    growth: int | None = None
    unbroken_growth: int | None = None
    evaluations: float | None = None


def number_of_steps(plan: Plan) -> int:
    """How often `run` reports progress."""
    return len(plan.depths) * (len(plan.variants) + plan.repeats)


def run(plan: Plan, show: Show) -> list[Row]:
    """Measure everything; `show` is told after each step what it was."""
    rows = []
    for depth in plan.depths:
        found = [_memory_row(plan, depth, variant, show) for variant in plan.variants]
        measured = [row for row in found if row.status == "measured"]
        rounds = take_times(measured, plan.settings, plan.repeats, show)
        for row in measured if rounds else ():
            row.time = summary(row.variant, rounds)
        rows += found
    return rows


def _memory_row(plan: Plan, depth: int, variant: str, show: Show) -> Row:
    row = Row(variant, depth)
    state = available(variant)
    if not state:
        row.status, row.reason = "missing", state.reason
    else:
        try:
            _add_memory(row, plan.settings)
        except TaskError as error:
            row.status, row.reason = "failed", str(error)
    show(f"memory, depth {depth}, {variant}: {row.status}")
    return row


def _add_memory(row: Row, settings: Settings) -> None:
    depth, variant = row.depth, row.variant
    found = run_task("memory", settings, depth=depth, variant=variant)
    row.unbroken_growth = run_task(
        "growth", settings, environment=UNBROKEN, depth=depth, variant=variant
    )
    row.memory, row.growth = found["memory"], found["growth"]
    row.evaluations = found["evaluations"]
    row.above = _above(found["memory"], settings.activation)


def _above(memory: dict[str, Any], activation: int) -> float:
    return float(memory["peak"] - memory["parameters"] - memory["gradients"]) / activation


def take_times(
    rows: Sequence[Finding], settings: Settings, repeats: int, show: Show, worker: str = WORKER
) -> list[Round]:
    """Time what rows of one depth stand for, in one process; none if that failed, as they tell."""
    names = [row.variant for row in rows]
    depth = rows[0].depth if rows else 0
    try:
        rounds: list[Round] = run_task(
            "timing",
            settings,
            on_round=lambda: show(f"time, depth {depth}, a round of {len(names)} variants"),
            worker=worker,
            depth=depth,
            variants=names,
            repeats=repeats,
        )
    except TaskError as error:
        for row in rows:
            row.reason = f"time was not measured: {error}"
        return []
    return rounds


def summary(variant: str, rounds: Sequence[Round]) -> dict[str, Any]:
    """Medians over the rounds. Ratios are taken within a round, so that slow drift cancels."""
    time: dict[str, Any] = {}
    for clock in ("wall", "cpu"):
        seconds = [one[clock][variant] for one in rounds]
        time[clock] = median(seconds)
        time[f"{clock}_rounds"] = seconds
        if BASE in rounds[0][clock]:
            ratios = (one[clock][variant] / one[clock][BASE] for one in rounds)
            time[f"{clock}_ratio"] = median(ratios)
    return time
