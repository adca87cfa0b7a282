"""What the body of the iUNet is to achieve at 1/16, and whether it does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from revgrad.benchmarks.iunet_table1.figures import GOAL_MIB, GOAL_TIME_RATIO
from revgrad.benchmarks.iunet_table1.run import Row
from revgrad.benchmarks.iunet_table1.settings import SMALL, Plan

VARIANT = "revgrad"


def verdicts(plan: Plan, rows: Sequence[Row]) -> Iterator[str]:
    """A line for each of the goals that the rows can tell of."""
    if plan.scale != SMALL or plan.settings.batch != 1:
        yield f"The goals are set for --scale {SMALL} and a batch of 1."
        return
    for variant in GOAL_MIB:
        own = [row for row in rows if row.variant == variant]
        yield from _memory(plan, variant, own)
        yield from _time(variant, own)


def _memory(plan: Plan, variant: str, rows: Sequence[Row]) -> Iterator[str]:
    limits = GOAL_MIB[variant]
    peaks = {
        row.depth: row.memory["peak_without_scratch"] / 2**20
        for row in rows
        if row.memory is not None and row.depth in limits
    }
    title = f"Goal, peak of {variant} without scratch in MiB"
    if peaks and not plan.settings.channels_last:
        yield f"{title}: it is set for --channels-last"
    elif peaks:
        yield f"{title}: {_within(peaks, limits, '.1f')}"


def _time(variant: str, rows: Sequence[Row]) -> Iterator[str]:
    found = {r.depth: r.time["wall_ratio"] for r in rows if r.time and "wall_ratio" in r.time}
    if found and variant in GOAL_TIME_RATIO:
        limits = dict.fromkeys(found, GOAL_TIME_RATIO[variant])
        yield f"Goal, time of {variant} by that of plain: {_within(found, limits, '.2f')}"


def _within(found: Mapping[int, float], limits: Mapping[int, float], form: str) -> str:
    """Compared as they were measured, not as they are printed."""
    return "; ".join(
        f"at {depth} {'met' if value <= limits[depth] else 'NOT met'}, "
        f"{value:{form}} (at most {limits[depth]:{form}})"
        for depth, value in found.items()
    )
