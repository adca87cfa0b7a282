"""Tables of a run, and its files: JSON, Markdown and, with matplotlib, a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from revgrad import machine
from revgrad.benchmarks import pages
from revgrad.benchmarks.iunet_table1 import figures, goal, picture
from revgrad.benchmarks.iunet_table1.figures import ByDepth
from revgrad.benchmarks.iunet_table1.networks import VARIANTS
from revgrad.benchmarks.iunet_table1.run import Row
from revgrad.benchmarks.iunet_table1.settings import FULL, LEVELS, SMALL, Plan
from revgrad.benchmarks.sequence.report import STATUS

_MIB = 2**20

Line = tuple[str, ...]


def tables(plan: Plan, rows: Sequence[Row]) -> str:
    """All tables in Markdown, aligned for the eye, and whether the goals are met."""
    sections = {
        "Peak memory in MiB without the convolutions' scratch, in brackets with it": [
            *_measured(plan, rows, plan.variants, _peak),
            *_memory_elsewhere(plan),
        ],
        "Peak memory without scratch, memory-efficient by conventional, in %": [
            *_shares(plan, rows),
            *_shares_elsewhere(plan),
        ],
        "Time of a step by that of the same modules trained plainly, shortest round by shortest "
        "round, wall clock (processor)": [
            *_measured(plan, rows, _efficient(plan), _ratio),
            *_times_elsewhere(plan),
        ],
        "Time of a step in ms, the shortest round": _measured(plan, rows, plan.variants, _ms),
    }
    parts = [
        text
        for title, lines in sections.items()
        for text in (
            f"{title}, by coupling blocks of each level and side:",
            pages.table(("", *plan.depths), lines),
        )
    ]
    notes = "\n".join(f"- {note}" for note in _notes(plan, rows))
    return "\n\n".join([*parts, notes, *goal.verdicts(plan, rows)])


def write(plan: Plan, rows: Sequence[Row], facts: machine.Facts, folder: Path) -> Path:
    """Write the files into a folder, and return the Markdown page."""
    record = {
        "what": "iunet-table1",
        "machine": facts,
        "plan": asdict(plan),
        "goals": list(goal.verdicts(plan, rows)),
    }
    return pages.write(
        folder / f"{_name(plan, facts)}.md",
        record,
        [asdict(row) for row in rows],
        draw=lambda: picture.memory_and_time(plan, rows),
        text=lambda drawn: _page(plan, rows, facts, drawn),
    )


def _page(plan: Plan, rows: Sequence[Row], facts: machine.Facts, drawn: bool) -> str:
    settings = {
        "scale": plan.scale,
        **asdict(plan.settings),
        "depths": plan.depths,
        "rounds": plan.repeats,
    }
    parts = [
        "# An iUNet in memory and time",
        _introduction(plan),
        *([f"![Memory and time]({_name(plan, facts)}.png)"] if drawn else []),
        tables(plan, rows),
        pages.configuration(settings, facts),
    ]
    return "\n\n".join(parts)


def _introduction(plan: Plan) -> str:
    settings = plan.settings
    return (
        f"The body of an iUNet with {LEVELS} resolutions, {settings.channels} channels of "
        f"{settings.size} x {settings.size} pixels on top and twice as many on each next one. A "
        "coupling's sub-network is one unit of convolution, instance norm and leaky ReLU; depth is "
        "the number of coupling blocks of each resolution on the way down, and again on the way "
        "up. A step is a forward and a backward pass, without an optimizer unless it steps inside "
        "the backward pass. Its caller holds the input, the output and the output's gradient; "
        "parameters and gradients are part of the peak. Memory is that of PyTorch's tensors; each "
        "figure comes from a fresh process. Times come from one process in which the variants take "
        "turns."
    )


# --- measured -----------------------------------------------------------------------------------


def _measured(
    plan: Plan, rows: Sequence[Row], variants: Sequence[str], text: Callable[[Row], str]
) -> list[Line]:
    """A line for each variant."""
    cells = {(row.variant, row.depth): STATUS.get(row.status) or text(row) for row in rows}
    return [(name, *(cells[name, depth] for depth in plan.depths)) for name in variants]


def _efficient(plan: Plan) -> list[str]:
    return [name for name in plan.variants if VARIANTS[name].base != name]


def _peak(row: Row) -> str:
    if row.memory is None:
        return "-"
    bare, whole = (row.memory[name] / _MIB for name in ("peak_without_scratch", "peak"))
    return f"{bare:.1f} ({whole:.1f})"


def _ratio(row: Row) -> str:
    if row.time is None or "wall_ratio" not in row.time:
        return "-"
    return f"{row.time['wall_ratio']:.2f} ({row.time['cpu_ratio']:.2f})"


def _ms(row: Row) -> str:
    return "-" if row.time is None else f"{1000 * row.time['wall']:.0f}"


def _shares(plan: Plan, rows: Sequence[Row]) -> Iterator[Line]:
    """Each against its own modules, and "revgrad" against the package of the authors."""
    peaks = {(r.variant, r.depth): r.memory["peak_without_scratch"] for r in rows if r.memory}
    pairs = [(name, VARIANTS[name].base) for name in _efficient(plan)]
    for name, base in (*pairs, (goal.VARIANT, "iunets-conventional")):
        found = {
            depth: peaks[name, depth] / peaks[base, depth]
            for depth in plan.depths
            if (name, depth) in peaks and (base, depth) in peaks
        }
        yield from _line(plan, f"{name} / {base}", found, ".1%")


# --- from elsewhere -----------------------------------------------------------------------------


def _memory_elsewhere(plan: Plan) -> Iterator[Line]:
    """In this set-up; the published ones at full size, which needs 16 times as much."""
    conventional = figures.IUNETS_CONVENTIONAL_MIB
    efficient = {depth: figures.IUNETS_SHARE[depth] * mib for depth, mib in conventional.items()}
    if plan.scale == SMALL:
        if plan.settings.channels_last:
            for variant, limits in figures.GOAL_MIB.items():
                yield from _line(plan, f"goal for {variant}", limits, ".1f")
        yield from _line(plan, "iunets 80ed7cc, conventional", conventional, ".1f")
        yield from _line(plan, "iunets 80ed7cc, memory-efficient", efficient, ".1f")
    name = "published at full size" if plan.scale != FULL else "published"
    yield from _line(plan, f"{name}, conventional, GB", figures.PUBLISHED_CONVENTIONAL_GB, ".2f")
    yield from _line(plan, f"{name}, memory-efficient, GB", figures.PUBLISHED_EFFICIENT_GB, ".2f")


def _shares_elsewhere(plan: Plan) -> Iterator[Line]:
    if plan.scale == SMALL:
        yield from _line(plan, "iunets 80ed7cc", figures.IUNETS_SHARE, ".1%")
    published = {
        depth: figures.PUBLISHED_EFFICIENT_GB[depth] / gb
        for depth, gb in figures.PUBLISHED_CONVENTIONAL_GB.items()
    }
    yield from _line(plan, "published", published, ".1%")


def _times_elsewhere(plan: Plan) -> Iterator[Line]:
    if plan.scale == SMALL:
        for variant, ratio in figures.GOAL_TIME_RATIO.items():
            limits = dict.fromkeys(plan.depths, ratio)
            yield from _line(plan, f"goal for {variant}", limits, ".2f")
        yield from _line(plan, "iunets 80ed7cc, units in pairs", figures.IUNETS_TIME_RATIO, ".2f")
    yield from _line(plan, "published", figures.PUBLISHED_TIME_RATIO, ".2f")


def _line(plan: Plan, name: str, values: ByDepth, form: str) -> Iterator[Line]:
    """One line, or none where no depth has a value."""
    if any(depth in values for depth in plan.depths):
        yield name, *(f"{values[d]:{form}}" if d in values else "-" for d in plan.depths)


def _notes(plan: Plan, rows: Sequence[Row]) -> Iterator[str]:
    """Once each: what the variants are, where other figures come from, and why some are missing."""
    for variant in plan.variants:
        yield f"{variant}: {VARIANTS[variant].about}"
    if plan.scale == SMALL:
        yield (
            "iunets 80ed7cc: the authors' package as of 2021-06 in this set-up, contiguous, "
            "scratch included, measured on 2 cores of a CPU with torch 2.13.0 in November 2026; "
            "its time with the package's own sub-networks of two units"
        )
    yield "published: Table 1 of the iUNet's authors, 64 channels of 512 x 512 pixels"
    reasons = dict.fromkeys((row.variant, row.status, row.reason) for row in rows if row.reason)
    for variant, status, reason in reasons:
        yield f"{variant}: {'failed, ' if status == 'failed' else ''}{reason}"


def _name(plan: Plan, facts: machine.Facts) -> str:
    """Names the run by its date, what sets it apart, and the processor or GPU."""
    what = [
        "iunet-table1",
        *([plan.scale] if plan.scale != SMALL else []),
        *(["channels-last"] if plan.settings.channels_last else []),
    ]
    threads = f"{plan.settings.threads}-thread{'s' if plan.settings.threads > 1 else ''}"
    return pages.name(facts, "-".join(what), threads)
