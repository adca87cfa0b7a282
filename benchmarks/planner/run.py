"""A whole run: every variant at every budget, in memory and in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from revgrad.benchmarks.peers import available
from revgrad.benchmarks.planner.networks import BASE
from revgrad.benchmarks.planner.settings import Plan
from revgrad.benchmarks.sequence.process import TaskError, run_task
from revgrad.benchmarks.sequence.run import Round, Show

_WORKER = "revgrad.benchmarks.planner.worker"


@dataclass
class Row:
    """What was found out about one variant within one budget.

    Attributes:
        variant: Its name.
        budget: A fraction.
        status: "measured", "missing" or "failed".
        reason: Why it was not measured.
        memory: A `MemoryReport` as a dictionary, in bytes.
        time: Seconds of the shortest round and of all, and the shortest by that of plain.
        planned: Of revgrad: the schedule, and the peak and seconds that were foretold.
    """

    variant: str
    budget: float
    status: str = "measured"
    reason: str = ""
    memory: dict[str, Any] | None = None
    time: dict[str, Any] | None = None
    planned: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """Names it among all."""
        return f"{self.variant} {self.budget:g}"

    def point(self) -> dict[str, Any]:
        """What the process that times it has to know."""
        schedule = self.planned["schedule"] if self.planned is not None else "invert"
        return {
            "name": self.name,
            "variant": self.variant,
            "budget": self.budget,
            "schedule": schedule,
        }


def number_of_steps(plan: Plan) -> int:
    """How often `run` reports progress at most."""
    compiled = len(plan.budgets) * ("compiled" in plan.variants)
    return len(plan.budgets) * len(plan.variants) + 1 + plan.repeats * (1 + compiled)


def run(plan: Plan, show: Show) -> list[Row]:
    """Measure everything; `show` is told after each step what it was."""
    base = Row(BASE, 1.0)
    rows = [Row(variant, budget) for variant in plan.variants for budget in plan.budgets]
    for row in (base, *rows):
        _fill(plan, row, show)
    if base.memory is None:
        return [base, *rows]
    measured = [row for row in rows if row.memory is not None]
    # A process compiles a module of one structure once, and so for one budget.
    _take_times(plan, base, [row for row in measured if row.variant != "compiled"], show)
    for row in measured:
        if row.variant == "compiled":
            _take_times(plan, base, [row], show)
    return [base, *rows]


def _fill(plan: Plan, row: Row, show: Show) -> None:
    """Plan and measure the memory of one point."""
    state = available(row.variant)
    options: dict[str, Any] = {"worker": _WORKER, "depth": plan.depth, "budget": row.budget}
    try:
        if not state:
            row.status, row.reason = "missing", state.reason
        else:
            if row.variant == "revgrad":
                row.planned = run_task("plan", plan.settings, repeats=plan.repeats, **options)
                options["schedule"] = row.planned["schedule"]
            row.memory = run_task("memory", plan.settings, variant=row.variant, **options)
    except TaskError as error:
        row.status, row.reason = "failed", str(error)
    show(f"memory, {row.name}: {row.status}")


def _take_times(plan: Plan, base: Row, rows: Sequence[Row], show: Show) -> None:
    """Time some points beside the base, in one process."""
    try:
        rounds: list[Round] = run_task(
            "timing",
            plan.settings,
            on_round=lambda: show(f"time, a round of {len(rows) + 1} steps"),
            worker=_WORKER,
            depth=plan.depth,
            points=[row.point() for row in (base, *rows)],
            repeats=plan.repeats,
        )
    except TaskError as error:
        for row in rows:
            row.reason = f"time was not measured: {error}"
        return
    for row in (base, *rows):
        if row.time is None:
            row.time = summary(row.name, base.name, rounds)


def summary(name: str, base: str, rounds: Sequence[Round]) -> dict[str, Any]:
    """The shortest round, which other processes disturb least, and by that of the base."""
    time: dict[str, Any] = {}
    for clock in ("wall", "cpu"):
        seconds = [one[clock][name] for one in rounds]
        time[clock] = min(seconds)
        time[f"{clock}_rounds"] = seconds
        time[f"{clock}_ratio"] = min(seconds) / min(one[clock][base] for one in rounds)
    return time
