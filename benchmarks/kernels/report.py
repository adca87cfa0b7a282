"""Tables of a run, and its files: JSON and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from revgrad import machine
from revgrad.benchmarks import pages
from revgrad.benchmarks.kernels.cases import Plan
from revgrad.benchmarks.kernels.run import Row

_INTRODUCTION = (
    "Times as multiples of a unit in the same run: `clone` of the operator's input; for "
    "`expm_skew` torch's `matrix_exp`, and our own forward pass. The contestants take turns; the "
    "shortest time of each counts. Freed memory stays with the process, so no time goes into "
    "fetching pages from the system. A goal is the most that the kernel shall take."
)


def tables(rows: Sequence[Row]) -> str:
    """A table in Markdown for each operator, and how many goals are met."""
    parts = []
    for operator, group in groupby(_sorted(rows), lambda row: row.operator):
        lines = list(group)
        rivals = list(dict.fromkeys(name for row in lines for name in row.rivals))
        head = ("", f"{lines[0].unit}, ms", "revgrad", *rivals, "goal", "met")
        parts += [f"{operator}:", pages.table(head, [_line(row, rivals) for row in lines])]
    return "\n\n".join([*parts, _verdict(rows)])


def write(plan: Plan, rows: Sequence[Row], facts: machine.Facts, folder: Path) -> Path:
    """Write the files into a folder, and return the Markdown page."""
    record = {"what": "kernels", "machine": facts, "plan": asdict(plan)}
    threads = f"{plan.threads}-thread{'s' if plan.threads > 1 else ''}"
    return pages.write(
        folder / f"{pages.name(facts, 'kernels', threads)}.md",
        record,
        [asdict(row) for row in rows],
        text=lambda _: _page(plan, rows, facts),
    )


def _page(plan: Plan, rows: Sequence[Row], facts: machine.Facts) -> str:
    parts = ["# The kernels in time", _INTRODUCTION, tables(rows)]
    return "\n\n".join([*parts, pages.configuration(asdict(plan), facts)])


def _sorted(rows: Sequence[Row]) -> list[Row]:
    """Rows of an operator together, in the order in which the operators came."""
    order = list(dict.fromkeys(row.operator for row in rows))
    return sorted(rows, key=lambda row: order.index(row.operator))


def _line(row: Row, rivals: Sequence[str]) -> tuple[str, ...]:
    theirs = (_times(row.rivals.get(name)) for name in rivals)
    goal = "-" if row.goal is None else f"{row.goal:g}"
    met = {None: "-", True: "yes", False: "**no**"}[row.met]
    return row.what, f"{1000 * row.seconds:.3f}", _times(row.ours), *theirs, goal, met


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _verdict(rows: Sequence[Row]) -> str:
    judged = [row for row in rows if row.met is not None]
    missed = [f"{row.operator}, {row.what}" for row in judged if not row.met]
    text = f"{len(judged) - len(missed)} of {len(judged)} goals met."
    return text + "".join(f"\n- not met: {item}" for item in missed)
