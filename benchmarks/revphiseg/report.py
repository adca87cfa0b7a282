"""Tables of a run, and its files: JSON, Markdown and, with matplotlib, a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from revgrad import machine
from revgrad.benchmarks import pages
from revgrad.benchmarks.revphiseg import figures, picture
from revgrad.benchmarks.revphiseg.goal import verdicts
from revgrad.benchmarks.revphiseg.networks import VARIANTS
from revgrad.benchmarks.revphiseg.run import Row
from revgrad.benchmarks.revphiseg.settings import Plan, Point
from revgrad.benchmarks.revphiseg.shares import by_base, peak, saved, whole_peak

_MIB = 2**20

Line = tuple[str, ...]


def tables(plan: Plan, rows: Sequence[Row]) -> str:
    """All tables in Markdown, aligned for the eye, and whether the goals are met."""
    memory = pages.table(
        ("images", "variant", "saved, MiB", "by phiseg", "peak, MiB", "by phiseg", "process, MiB"),
        [line for point in plan.points for line in _memory_lines(point, rows)],
    )
    time = pages.table(
        ("variant", "parameters", "operations", "by phiseg", "s / step", "time by phiseg"),
        [_time_line(row, rows) for row in rows if row.point == plan.points[0]],
    )
    notes = "\n".join(f"- {note}" for note in _notes(plan, rows))
    return "\n\n".join(
        [
            "Activations saved by the forward pass, and the peak of a training step with Adam's "
            "state, without the convolutions' scratch, in brackets with it:",
            memory,
            f"Operations and time, {plan.points[0]}:",
            time,
            notes,
            *verdicts(plan, rows),
        ]
    )


def write(plan: Plan, rows: Sequence[Row], facts: machine.Facts, folder: Path) -> Path:
    """Write the files into a folder, and return the Markdown page."""
    name = _name(plan, facts)
    record = {
        "what": "revphiseg",
        "machine": facts,
        "plan": asdict(plan),
        "goals": list(verdicts(plan, rows)),
    }
    return pages.write(
        folder / f"{name}.md",
        record,
        [asdict(row) for row in rows],
        draw=lambda: picture.peaks(plan, rows),
        text=lambda drawn: _page(plan, rows, facts, f"![Peak memory]({name}.png)" * drawn),
    )


def _page(plan: Plan, rows: Sequence[Row], facts: machine.Facts, drawn: str) -> str:
    layout = "channels-last" if plan.channels_last else "contiguous"
    settings = {
        "device": plan.device,
        "layout": layout,
        "threads": plan.threads,
        "rounds": plan.repeats,
    }
    network = "tiny networks" if plan.quick else "the networks of the papers"
    parts = [
        "# PHiSeg and RevPHiSeg in memory and time",
        f"A step is loss, backward pass and Adam, of {network}, on random images and masks. Each "
        "point is measured in a fresh process; memory is that of PyTorch's tensors, the process's "
        "own peak what the system saw. Times come from one process in which the variants take "
        "turns.",
        *([drawn] if drawn else []),
        tables(plan, rows),
        pages.configuration(settings, facts),
    ]
    return "\n\n".join(parts)


def _memory_lines(point: Point, rows: Sequence[Row]) -> Iterator[Line]:
    """A line for each variant, and what was published."""
    for row in rows:
        if row.point != point:
            continue
        if row.memory is None:
            yield str(point), row.variant, row.status, "", "", "", ""
            continue
        resident = "" if row.resident is None else f"{row.resident / _MIB:.0f}"
        shares = [by_base(value, row, rows) for value in (saved, peak, whole_peak)]
        less, lower, whole_share = ("" if share is None else f"{share:.3f}" for share in shares)
        whole = f"{peak(row) / _MIB:.1f} ({whole_peak(row) / _MIB:.1f})"
        lower += f" ({whole_share})" * bool(whole_share)
        cells = (f"{saved(row) / _MIB:.1f}", less, whole, lower)
        yield str(point), row.variant, *cells, resident
    if point in figures.PUBLISHED_MB:
        plain, reversible = figures.PUBLISHED_MB[point]
        own = figures.REFERENCE_SAVED_MIB.get(point)
        kept = ("", "") if own is None else (f"{own[0]} / {own[1]}", f"{own[1] / own[0]:.3f}")
        share = "" if plain is None else f"{reversible / plain:.3f}"
        peaks = f"{plain or 'out of memory'} / {reversible} MB"
        yield str(point), "published: phiseg / revphiseg", *kept, peaks, share, ""


def _time_line(row: Row, rows: Sequence[Row]) -> Line:
    if row.flops is None:
        return row.variant, row.status, "", "", "", ""
    share = by_base(lambda r: r.flops, row, rows)
    time = row.time or {}
    return (
        row.variant,
        f"{row.parameters:,}",
        f"{row.flops / 1e9:.1f} G",
        "" if share is None else f"{share:.3f}",
        f"{time['wall']:.2f}" if time else "",
        f"{time['wall_ratio']:.3f}" if "wall_ratio" in time else "",
    )


def _notes(plan: Plan, rows: Sequence[Row]) -> Iterator[str]:
    for variant in plan.variants:
        yield f"{variant}: {VARIANTS[variant].about}"
    yield (
        "published: the paper's peak on a GPU, 1 MB = 10^6 bytes or 2^20, it does not say; saved, "
        "MiB: the authors' code, measured on a CPU"
    )
    reasons = dict.fromkeys((row.variant, row.point, row.reason) for row in rows if row.reason)
    for variant, point, reason in reasons:
        yield f"{variant}, {point}: {reason}"


def _name(plan: Plan, facts: machine.Facts) -> str:
    threads = f"{plan.threads}-thread{'s' if plan.threads > 1 else ''}"
    title = "revphiseg-quick" if plan.quick else "revphiseg"
    layout = ["channels-last"] if plan.channels_last else []
    return pages.name(facts, title, *layout, threads)
