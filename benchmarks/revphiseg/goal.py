"""What RevPHiSeg is to achieve, and whether it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from revgrad.benchmarks.revphiseg.figures import GOAL_PEAK, GOAL_SAVED, GOAL_TIME_BY_FLOPS
from revgrad.benchmarks.revphiseg.run import Row
from revgrad.benchmarks.revphiseg.settings import Plan
from revgrad.benchmarks.revphiseg.shares import by_base, peak, saved, whole_peak


def verdicts(plan: Plan, rows: Sequence[Row]) -> Iterator[str]:
    """A line for each goal and point that the rows can tell of."""
    if plan.quick:
        yield "The goals are set for the networks of the papers, not for --quick."
        return
    for what, value, goals in (
        ("peak", whole_peak, GOAL_PEAK),
        ("peak without scratch", peak, GOAL_PEAK),
        ("saved", saved, GOAL_SAVED),
    ):
        yield from _shares(f"{what} by that of phiseg", rows, goals, value)
    for row in rows:
        flops = by_base(lambda r: r.flops, row, rows)
        limit = GOAL_TIME_BY_FLOPS.get(row.variant)
        if limit is not None and flops and row.time and "wall_ratio" in row.time:
            found = row.time["wall_ratio"] / flops
            yield _verdict("time by phiseg's, by operations by phiseg's", row, found, limit)


def _shares(
    title: str, rows: Sequence[Row], goals: Mapping[str, float], value: Callable[[Row], int]
) -> Iterator[str]:
    for row in rows:
        share = by_base(value, row, rows)
        if share is not None and row.variant in goals:
            yield _verdict(title, row, share, goals[row.variant])


def _verdict(title: str, row: Row, found: float, limit: float) -> str:
    """Compared as it was measured, not as it is printed."""
    met = "met" if found <= limit else "NOT met"
    return f"Goal, {title}, {row.variant}, {row.point}: {met}, {found:.3f} (at most {limit:g})"
