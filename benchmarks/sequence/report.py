"""Tables of a run, and its files: JSON, Markdown and, with matplotlib, a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from revgrad import machine
from revgrad.benchmarks import pages, plot
from revgrad.benchmarks.pages import table
from revgrad.benchmarks.peers import ADAPTORS
from revgrad.benchmarks.sequence.goal import comparisons
from revgrad.benchmarks.sequence.run import BASE, Row
from revgrad.benchmarks.sequence.settings import Plan, Settings

_MIB = 2**20
STATUS = {"missing": "not installed", "failed": "failed"}
_CATEGORIES = ("parameters", "gradients", "kept_for_backward", "workspace", "scratch", "other")


def tables(plan: Plan, rows: Sequence[Row]) -> str:
    """All tables in Markdown, aligned for the eye."""
    activation = plan.settings.activation / _MIB
    sections = {
        f"Peak memory in MiB, and in A = {activation:g} MiB (one full activation) above parameters "
        "and gradients, by depth": _by_depth(plan, rows, _peak),
        f"Time of a step against {BASE}, wall clock (processor), by depth": _by_depth(
            plan, rows, _ratio
        ),
        **_compared(plan, rows),
        "Time of a step in ms, wall clock, by depth": _by_depth(plan, rows, _milliseconds),
        "Growth of the process in its first step in MiB, by depth; in brackets with the C "
        "library's allocator as it is, whose heap breaks into pieces": _by_depth(
            plan, rows, _growth
        ),
        f"At the peak of depth {plan.depths[-1]}, in MiB": _anatomy(plan, rows),
    }
    parts = [text for title, table in sections.items() for text in (title + ":", table)]
    notes = "\n".join(f"- {note}" for note in _notes(plan, rows))
    return "\n\n".join([*parts, notes])


def _compared(plan: Plan, rows: Sequence[Row]) -> dict[str, str]:
    text = comparisons(plan, rows)
    return {"Time of a step against that of others, by depth": text} if text else {}


def write(plan: Plan, rows: Sequence[Row], facts: machine.Facts, folder: Path) -> Path:
    """Write the files into a folder, and return the Markdown page."""
    record = {
        "what": "sequence",
        "machine": facts,
        "plan": asdict(plan),
        "activation": plan.settings.activation,
    }
    return pages.write(
        folder / f"{_name(plan.settings, facts)}.md",
        record,
        [asdict(row) for row in rows],
        draw=lambda: plot.memory_and_time(plan.settings, rows),
        text=lambda picture: _page(plan, rows, facts, picture),
    )


def _page(plan: Plan, rows: Sequence[Row], facts: machine.Facts, picture: bool) -> str:
    settings = {**asdict(plan.settings), "depths": plan.depths, "rounds": plan.repeats}
    parts = [
        "# A reversible sequence in memory and time",
        _introduction(plan.settings),
        *([f"![Memory and time]({_name(plan.settings, facts)}.png)"] if picture else []),
        tables(plan, rows),
        pages.configuration(settings, facts),
    ]
    return "\n\n".join(parts)


def _introduction(settings: Settings) -> str:
    return (
        f"Sub-networks of a {settings.spatial_dims}D convolution 3, instance norm and leaky ReLU "
        "in additive couplings; depth is their number. A step is a forward and a backward pass "
        "without an optimizer. Its caller holds the input, the output and the output's gradient "
        "(3 A). Memory is that of PyTorch's tensors; each figure comes from a fresh process. Times "
        "come from one process in which the variants take turns; a ratio is the median over the "
        "rounds of the ratio within a round."
    )


def _by_depth(plan: Plan, rows: Sequence[Row], text: Callable[[Row], str]) -> str:
    """A table with a line for each variant and a column for each depth."""
    cells = {(row.variant, row.depth): STATUS.get(row.status) or text(row) for row in rows}
    lines = [
        (variant, *(cells[variant, depth] for depth in plan.depths)) for variant in plan.variants
    ]
    return table(("variant", *plan.depths), lines)


def _peak(row: Row) -> str:
    return "" if row.memory is None else f"{row.memory['peak'] / _MIB:.1f} ({row.above:.2f} A)"


def _ratio(row: Row) -> str:
    if row.time is None or "wall_ratio" not in row.time:
        return "-"
    return f"{row.time['wall_ratio']:.2f} ({row.time['cpu_ratio']:.2f})"


def _milliseconds(row: Row) -> str:
    return "-" if row.time is None else f"{1000 * row.time['wall']:.1f}"


def _growth(row: Row) -> str:
    if row.unbroken_growth is None or row.growth is None:
        return "-"
    return f"{row.unbroken_growth / _MIB:.0f} ({row.growth / _MIB:.0f})"


def _anatomy(plan: Plan, rows: Sequence[Row]) -> str:
    """What the peak of the deepest sequence is made of, and how often sub-networks ran."""
    lines = [
        (row.variant, *(f"{row.memory[name] / _MIB:.2f}" for name in _CATEGORIES), _count(row))
        for row in rows
        if row.depth == plan.depths[-1] and row.memory is not None
    ]
    heads = (name.replace("_", " ") for name in _CATEGORIES)
    return table(("variant", *heads, "evaluations"), lines)


def _count(row: Row) -> str:
    return "-" if row.evaluations is None else f"{row.evaluations:g}"


def _notes(plan: Plan, rows: Sequence[Row]) -> Iterator[str]:
    """Once each: what the variants are, and why figures are missing."""
    for variant in plan.variants:
        adaptor = ADAPTORS[variant]
        remark = f"; {adaptor.on_cpu}" if adaptor.on_cpu and plan.settings.device == "cpu" else ""
        yield f"{variant}: {adaptor.about}{remark}"
    reasons = dict.fromkeys((row.variant, row.status, row.reason) for row in rows if row.reason)
    for variant, status, reason in reasons:
        prefix = "failed, " if status == "failed" else ""
        yield f"{variant}: {prefix}{reason}"


def _name(settings: Settings, facts: machine.Facts) -> str:
    """Names the run by its date, what sets it apart, and the processor or GPU."""
    what = [
        "sequence",
        *(["3d"] if settings.spatial_dims == 3 else []),
        *([settings.dtype] if settings.dtype != "float32" else []),
        *(["channels-last"] if settings.channels_last else []),
    ]
    threads = f"{settings.threads}-thread{'s' if settings.threads > 1 else ''}"
    return pages.name(facts, "-".join(what), threads)
