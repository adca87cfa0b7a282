"""A whole run: every variant at every point in memory, and at the first one in time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from revgrad.benchmarks.revphiseg.networks import BASE
from revgrad.benchmarks.revphiseg.settings import Plan, Point
from revgrad.benchmarks.sequence.process import TaskError, run_task

Show = Callable[[str], None]

_WORKER = "revgrad.benchmarks.revphiseg.worker"


@dataclass
class Row:
    """What was found out about one variant at one point.

    Attributes:
        point: The images.
        variant: Name of the variant.
        status: "measured" or "failed".
        reason: Why something was not measured.
        memory: A `MemoryReport` as a dictionary, in bytes.
        resident: The most bytes that the process had in memory; None where the
            system does not tell.
        saved: Bytes that autograd saves in the forward pass, parameters aside.
        flops: Counted operations of a step.
        parameters: Their number.
        time: Seconds of a step by clock, the shortest and all rounds, and by those of the base.
    """

    point: Point
    variant: str
    status: str = "measured"
    reason: str = ""
    memory: dict[str, Any] | None = None
    resident: int | None = None
    saved: int | None = None
    flops: int | None = None
    parameters: int | None = None
    time: dict[str, Any] | None = None


def number_of_steps(plan: Plan) -> int:
    """How often `run` reports progress."""
    return len(plan.points) * len(plan.variants) + plan.repeats


def run(plan: Plan, show: Show) -> list[Row]:
    """Measure everything; `show` is told after each step what it was."""
    rows = [_memory(plan, plan.points[0], name, show) for name in plan.variants]
    first = [row for row in rows if row.status == "measured"]
    if plan.repeats and first:
        # Before the other points: only times depend on what else the machine does.
        _add_times(plan, first, show)
    rest = [_memory(plan, point, name, show) for point in plan.points[1:] for name in plan.variants]
    return rows + rest


def _memory(plan: Plan, point: Point, variant: str, show: Show) -> Row:
    row = Row(point, variant)
    arguments: dict[str, Any] = {"variant": variant, "classes": point.classes, "quick": plan.quick}
    try:
        found = run_task("memory", plan.settings(point), worker=_WORKER, **arguments)
    except TaskError as error:
        row.status, row.reason = "failed", str(error)
    else:
        for name, value in found.items():
            setattr(row, name, value)
    show(f"memory, {point}, {variant}: {row.status}")
    return row


def _add_times(plan: Plan, rows: Sequence[Row], show: Show) -> None:
    """Time the variants of one point in one process."""
    point = rows[0].point
    names = [row.variant for row in rows]
    arguments: dict[str, Any] = {
        "classes": point.classes,
        "quick": plan.quick,
        "repeats": plan.repeats,
    }
    try:
        rounds = run_task(
            "timing",
            plan.settings(point),
            on_round=lambda: show(f"time, {point}, a round of {len(names)} variants"),
            worker=_WORKER,
            variants=names,
            **arguments,
        )
    except TaskError as error:
        for row in rows:
            row.reason = f"time was not measured: {error}"
        return
    for row in rows:
        row.time = summary(row.variant, rounds)


def summary(variant: str, rounds: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """The shortest round, which other processes disturb least, and its ratio to the base's."""
    time: dict[str, Any] = {}
    for clock in ("wall", "cpu"):
        seconds = [one[clock][variant] for one in rounds]
        time[clock], time[f"{clock}_rounds"] = min(seconds), seconds
        if BASE in rounds[0][clock]:
            time[f"{clock}_ratio"] = min(seconds) / min(one[clock][BASE] for one in rounds)
    return time
