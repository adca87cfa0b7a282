"""What exact arithmetic is to achieve, and whether it does.

(a) Its gradients are those of plain autograd of the same function, to the bit.
(b) With norm in float32 they are at most twice as far from float64 as float mode's at every depth,
and less far from depth 50 on. Elsewhere the same is counted, but is no goal: where sub-networks are
of lower precision, or drift is small, the grid decides nothing or costs more than drift does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from revgrad.benchmarks.accuracy.run import EXACT, FLOAT, MEASURED, NOT_FINITE, Errors, Row

MOST = 2.0
DEEP = 50
WHERE = ("norm", "float32")


@dataclass(frozen=True)
class Ratio:
    """Exact mode's error against float64 by float mode's, at one depth."""

    network: str
    precision: str
    depth: int
    value: float

    @property
    def kind(self) -> tuple[str, str]:
        """Network and precision."""
        return self.network, self.precision

    def __str__(self) -> str:
        return f"{self.value:.2g} ({self.network} in {self.precision}, depth {self.depth})"


def verdicts(rows: Sequence[Row]) -> Iterator[str]:
    """A line for each of the goals that the rows can tell of."""
    exact = [row for row in rows if row.variant == EXACT]
    if exact:
        yield f"Goal (a), exact mode is plain autograd of the same function: {_same(exact)}"
    found = ratios(rows)
    goal = [ratio for ratio in found if ratio.kind == WHERE]
    deep = [ratio for ratio in goal if ratio.depth >= DEEP]
    name = f"Goal (b), {' in '.join(WHERE)}, exact mode's distance from float64 by float mode's"
    if goal:
        yield f"{name}: at most {MOST:g} at every depth: {_within(goal)}"
    if deep:
        worst = _worst(deep)
        yield f"{name}: below 1 from depth {DEEP} on: {_met(worst.value < 1)}; worst {worst}"
    elsewhere = [ratio for ratio in found if ratio.kind != WHERE]
    if elsewhere:
        yield f"No goal: elsewhere at most {MOST:g}: {_within(elsewhere)}"


def _same(exact: Sequence[Row]) -> str:
    """Judged by each network, since a median hides the others."""
    measured = [row for row in exact if row.total.status == MEASURED]
    worst = [max(_largest(seed.same) for seed in row.seeds) for row in measured]
    others = Counter(row.total.status for row in exact if row.total.status != MEASURED)
    equal = worst.count(0)
    parts = [
        f"{_met(equal == len(worst) > 0)}, {equal} of {len(worst)} points to the bit",
        *([f"largest error {max(worst):.1e}"] if any(worst) else []),
        *(f"{status} at {count} more" for status, count in others.items()),
    ]
    return "; ".join(parts)


def _largest(errors: Errors | None) -> float:
    return max((errors or {}).values(), default=math.nan)


def _within(found: Sequence[Ratio]) -> str:
    beyond = [ratio for ratio in found if not ratio.value <= MOST]
    parts = [
        f"{_met(not beyond)}, {len(found) - len(beyond)} of {len(found)} points",
        f"worst {_worst(found)}",
    ]
    for kind in dict.fromkeys(ratio.kind for ratio in beyond):
        depths = (str(ratio.depth) for ratio in beyond if ratio.kind == kind)
        parts.append(f"beyond it {' in '.join(kind)} at {', '.join(depths)}")
    return "; ".join(parts)


def ratios(rows: Sequence[Row]) -> list[Ratio]:
    """Wherever exact mode was measured, and float mode was too or gave what is not finite."""
    totals = {(r.network, r.precision, r.depth, r.variant): r.total for r in rows}
    found = []
    for (network, precision, depth, variant), exact in totals.items():
        rival = totals.get((network, precision, depth, FLOAT))
        if variant != EXACT or exact.float64 is None or rival is None:
            continue
        if rival.float64 is not None:
            value = exact.float64["weights"] / rival.float64["weights"]
        elif rival.status == NOT_FINITE:
            value = 0.0
        else:
            continue
        found.append(Ratio(network, precision, depth, value))
    return found


def _worst(found: Sequence[Ratio]) -> Ratio:
    return max(found, key=lambda ratio: ratio.value)


def _met(met: bool) -> str:
    return "met" if met else "NOT met"
