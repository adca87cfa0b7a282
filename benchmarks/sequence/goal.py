"""What fused reversible training is to cost in time, against the fastest of others in its run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from revgrad.benchmarks.pages import table
from revgrad.benchmarks.sequence.run import Row
from revgrad.benchmarks.sequence.settings import Plan

EAGER = ("plain", "plain-group", "plain-other-format", "plain-group-other-format")


@dataclass(frozen=True)
class Comparison:
    """A variant against the fastest of others.

    Attributes:
        variant: Its name.
        others: Names of the others.
        what: The others in words.
        goals: The most that the ratio of times is to be, by type of numbers.
    """

    variant: str
    others: tuple[str, ...]
    what: str
    goals: dict[str, float]


COMPARISONS = (
    Comparison("revgrad-fused", EAGER, "fastest plain", {"float32": 0.95, "bfloat16": 0.75}),
    Comparison("revgrad-fused", ("plain",), "plain, same norm and format", {}),
    Comparison("revgrad-fused", ("plain-fused",), "itself plain", {"float32": 1.3}),
    Comparison("revgrad-fused", ("compiled",), "plain compiled", {"float32": 1.15}),
    Comparison("revgrad-one-graph", ("compiled",), "plain compiled", {"float32": 1.15}),
    Comparison("revgrad-exact-fused", ("revgrad-fused",), "float mode", {"float32": 1.05}),
)


def comparisons(plan: Plan, rows: Sequence[Row]) -> str:
    """A table of what could be compared, empty if nothing could."""
    lines = [(*line, *_goal(plan, c)) for c in COMPARISONS if (line := _line(plan, rows, c))]
    return table(("variant", "against", *plan.depths, "goal"), lines) if lines else ""


def _line(plan: Plan, rows: Sequence[Row], comparison: Comparison) -> tuple[str, ...] | None:
    ratios = [_ratio(rows, depth, comparison) for depth in plan.depths]
    if all(ratio is None for ratio in ratios):
        return None
    cells = ("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
    return (comparison.variant, comparison.what, *cells)


def _goal(plan: Plan, comparison: Comparison) -> Iterator[str]:
    limit = comparison.goals.get(plan.settings.dtype)
    yield "" if limit is None else f"at most {limit:.2f}"


def _ratio(rows: Sequence[Row], depth: int, comparison: Comparison) -> float | None:
    """Median over the rounds of the time by that of whichever of the others is fastest."""
    seconds = {
        row.variant: row.time["wall_rounds"] for row in rows if row.depth == depth and row.time
    }
    others = [seconds[name] for name in comparison.others if name in seconds]
    if comparison.variant not in seconds or not others:
        return None
    fastest = min(others, key=median)
    return median(a / b for a, b in zip(seconds[comparison.variant], fastest, strict=True))
