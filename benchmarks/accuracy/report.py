"""Tables of a run, and its files: JSON, Markdown and, with matplotlib, a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from revgrad import machine
from revgrad.benchmarks import pages
from revgrad.benchmarks.accuracy import goal, picture
from revgrad.benchmarks.accuracy.networks import NETWORKS, PRECISIONS
from revgrad.benchmarks.accuracy.run import EXACT, MEASURED, NOT_INSTALLED, Outcome, Row
from revgrad.benchmarks.accuracy.settings import Plan
from revgrad.benchmarks.peers import ADAPTORS

# Field of an outcome -> what it compares with.
COMPARISONS = {
    "same": "against plain autograd of the same function",
    "float64": "against plain autograd in float64",
}
_CAPTION = (
    "A cross stands where a variant gave no figure: its gradients were not finite, its streams "
    "left their range, or it raised an error. The tables say which."
)


def tables(plan: Plan, rows: Sequence[Row]) -> str:
    """All tables in Markdown, aligned for the eye, and whether the goals are met."""
    parts = [
        part
        for network in plan.networks
        for comparison, words in COMPARISONS.items()
        for precision in plan.precisions
        for part in (
            f"Network {network}, {precision}, {words}, by depth:",
            _by_depth(plan, rows, network, precision, comparison),
        )
    ]
    notes = "\n".join(f"- {note}" for note in _notes(plan, rows))
    return "\n\n".join([*parts, notes, *goal.verdicts(rows)])


def write(plan: Plan, rows: Sequence[Row], facts: machine.Facts, folder: Path) -> Path:
    """Write the files into a folder, and return the Markdown page."""
    record = {
        "what": "accuracy",
        "machine": facts,
        "plan": asdict(plan),
        "goals": list(goal.verdicts(rows)),
    }
    return pages.write(
        folder / f"{_name(plan, facts)}.md",
        record,
        [_record(row) for row in rows],
        draw=lambda: picture.errors(plan, rows, COMPARISONS),
        text=lambda drawn: _page(plan, rows, facts, drawn),
    )


def _record(row: Row) -> dict[str, Any]:
    """A row without what says nothing, and with as many digits as mean something."""
    found = asdict(row)
    found["total"] = _short(found["total"])
    found["seeds"] = [_short(seed) for seed in found["seeds"]]
    return found


def _short(outcome: dict[str, Any]) -> dict[str, Any]:
    short = {name: value for name, value in outcome.items() if value}
    for comparison in COMPARISONS.keys() & short.keys():
        errors = short[comparison]
        short[comparison] = {name: float(f"{error:.4g}") for name, error in errors.items()}
    return short


def _page(plan: Plan, rows: Sequence[Row], facts: machine.Facts, drawn: bool) -> str:
    parts = [
        "# Accuracy of gradients by depth",
        _introduction(plan),
        *([f"![Errors by depth]({_name(plan, facts)}.png)", _CAPTION] if drawn else []),
        tables(plan, rows),
        pages.configuration(asdict(plan), facts),
    ]
    return "\n\n".join(parts)


def _introduction(plan: Plan) -> str:
    return (
        "Figures are the relative L2 error of the gradients of all weights together; depth is the "
        f"number of sub-networks in additive couplings; {_median(plan.seeds)}. The first "
        "comparison is with plain autograd of the very function that is run: the same modules in "
        f"the same precision, for {EXACT} with streams rounded to multiples of "
        f"2**-{plan.fraction_bits} (which must stay below {2 ** (31 - plan.fraction_bits)} in "
        "size), written from torch's own modules. 0 is equality to the bit; plain is 0 by "
        "definition. The second comparison is with the same weights and input in float64, without "
        "a grid. The errors of the input's gradient and those of every network are in the JSON."
    )


def _median(seeds: int) -> str:
    return "one network each" if seeds == 1 else f"each is the median of {seeds} networks"


def _by_depth(
    plan: Plan, rows: Sequence[Row], network: str, precision: str, comparison: str
) -> str:
    """A table with a line for each variant and a column for each depth."""
    cells = {
        (row.variant, row.depth): _cell(row.total, comparison)
        for row in rows
        if (row.network, row.precision) == (network, precision)
    }
    lines = [
        (variant, *(cells[variant, depth] for depth in plan.depths)) for variant in plan.variants
    ]
    return pages.table(("variant", *plan.depths), lines)


def _cell(outcome: Outcome, comparison: str) -> str:
    if outcome.status != MEASURED:
        return outcome.status
    error = getattr(outcome, comparison)["weights"]
    return f"{error:.1e}" if error else "0"


def _notes(plan: Plan, rows: Sequence[Row]) -> Iterator[str]:
    """Once each: what the networks, precisions and variants are, and why figures are missing."""
    for network in plan.networks:
        yield f"network {network}: {NETWORKS[network].about}"
    for precision in plan.precisions:
        yield f"{precision}: {PRECISIONS[precision].about}"
    for variant in plan.variants:
        bits = f", {plan.fraction_bits} fraction bits" if variant == EXACT else ""
        yield f"{variant}: {ADAPTORS[variant].about}{bits}"
    reasons = (f"{_place(row)}: {row.total.reason}" for row in rows if row.total.reason)
    yield from dict.fromkeys(reasons)


def _place(row: Row) -> str:
    if row.total.status == NOT_INSTALLED:
        return row.variant
    return f"{row.variant}, {row.network}, {row.precision}, depth {row.depth}"


def _name(plan: Plan, facts: machine.Facts) -> str:
    """Names the run by its date, what sets it apart, and the processor or GPU."""
    bits = f"-{plan.fraction_bits}-bits" if plan.fraction_bits != 20 else ""
    return pages.name(facts, f"accuracy{bits}")
