"""Tables of a run, and its files: JSON, Markdown and, with matplotlib, a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

from revgrad import machine
from revgrad.benchmarks import pages
from revgrad.benchmarks.peers import ADAPTORS
from revgrad.benchmarks.planner import picture
from revgrad.benchmarks.planner.networks import ABOUT, BASE
from revgrad.benchmarks.planner.run import Row
from revgrad.benchmarks.planner.settings import Plan
from revgrad.benchmarks.sequence.report import STATUS

_MIB = 2**20


def tables(plan: Plan, rows: Sequence[Row]) -> str:
    """All tables in Markdown, aligned for the eye, and what they tell."""
    sections: dict[str, Callable[[Row], str]] = {
        "Peak memory in MiB without the convolutions' scratch": _peak,
        "Time of a step by that of plain, shortest round by shortest round, wall clock "
        "(processor)": _ratio,
    }
    parts = [
        text
        for title, cell in sections.items()
        for text in (
            f"{title}, by budget:",
            pages.table(("", *plan.budgets), _lines(plan, rows, cell)),
        )
    ]
    planned = [row for row in rows if row.planned is not None]
    if planned:
        parts += [
            "What `revgrad.memory.plan` foretold:",
            pages.table(_HEAD, map(_foretold, planned)),
        ]
    notes = "\n".join(f"- {note}" for note in _notes(rows))
    return "\n\n".join([*parts, notes, *falls(rows)])


def falls(rows: Sequence[Row]) -> Iterator[str]:
    """Whether the time of a step falls from budget to budget."""
    found = sorted((r.budget, r.time["wall"]) for r in rows if r.variant == "revgrad" and r.time)
    if len(found) < 2:
        return
    rises = [(b, later / earlier - 1) for (_, earlier), (b, later) in pairwise(found)]
    risen = [f"by {rise:.1%} at {budget:g}" for budget, rise in rises if rise > 0]
    yield (
        f"From budget to budget the time of revgrad's step {'falls' if not risen else 'rises'}"
        + (f" {', '.join(risen)}, and falls elsewhere." if risen else ", each time.")
    )


def write(plan: Plan, rows: Sequence[Row], facts: machine.Facts, folder: Path) -> Path:
    """Write the files into a folder, and return the Markdown page."""
    record = {"what": "planner", "machine": facts, "plan": asdict(plan), "falls": [*falls(rows)]}
    return pages.write(
        folder / f"{_name(plan, facts)}.md",
        record,
        [asdict(row) for row in rows],
        draw=lambda: picture.memory_against_time(plan, rows),
        text=lambda drawn: _page(plan, rows, facts, drawn),
    )


def _page(plan: Plan, rows: Sequence[Row], facts: machine.Facts, drawn: bool) -> str:
    settings = {**asdict(plan.settings), "sub-networks": plan.depth, "rounds": plan.repeats}
    parts = [
        "# Memory against time, by budget",
        "A sequence of additive couplings whose sub-networks are a 3x3 convolution, instance norm "
        "and leaky ReLU. A step is a forward and a backward pass without an optimizer. Its caller "
        "holds the input, the output and the output's gradient; parameters and gradients are part "
        "of the peak. Memory is that of PyTorch's tensors, each figure from a fresh process. Times "
        "come from one process in which the points take turns; a compiled one has a process to "
        "itself and plain.",
        *([f"![Memory against time]({_name(plan, facts)}.png)"] if drawn else []),
        tables(plan, rows),
        pages.configuration(settings, facts),
    ]
    return "\n\n".join(parts)


_HEAD = ("budget", "peak MiB, foretold", "measured", "ms, foretold", "measured", "schedule")


def _foretold(row: Row) -> tuple[object, ...]:
    assert row.planned is not None
    ways = list(row.planned["schedule"].values())
    return (
        row.budget,
        f"{row.planned['peak'] / _MIB:.1f}",
        _peak(row),
        f"{1000 * row.planned['seconds']:.0f}",
        "-" if row.time is None else f"{1000 * row.time['wall']:.0f}",
        ", ".join(f"{ways.count(way)} {way}" for way in dict.fromkeys(ways)),
    )


def _lines(
    plan: Plan, rows: Sequence[Row], text: Callable[[Row], str]
) -> Iterator[tuple[object, ...]]:
    """A line for each variant, and plain's, which has one point."""
    cells = {(row.variant, row.budget): STATUS.get(row.status) or text(row) for row in rows}
    for variant in (*plan.variants, BASE):
        yield variant, *(cells.get((variant, budget), "") for budget in plan.budgets)


def _peak(row: Row) -> str:
    return "-" if row.memory is None else f"{row.memory['peak_without_scratch'] / _MIB:.1f}"


def _ratio(row: Row) -> str:
    if row.time is None:
        return "-"
    return f"{row.time['wall_ratio']:.2f} ({row.time['cpu_ratio']:.2f})"


def _notes(rows: Sequence[Row]) -> Iterator[str]:
    """What the variants are, and why some are missing."""
    for variant in dict.fromkeys(row.variant for row in rows):
        yield f"{variant}: {ABOUT.get(variant) or ADAPTORS[variant].about}"
    reasons = dict.fromkeys((row.variant, row.status, row.reason) for row in rows if row.reason)
    for variant, status, reason in reasons:
        yield f"{variant}: {'failed, ' if status == 'failed' else ''}{reason}"


def _name(plan: Plan, facts: machine.Facts) -> str:
    settings = plan.settings
    what = [
        "planner",
        *(["channels-last"] if settings.channels_last else []),
        *([settings.dtype] if settings.dtype != "float32" else []),
    ]
    threads = f"{settings.threads}-thread{'s' if settings.threads > 1 else ''}"
    return pages.name(facts, "-".join(what), threads)
