"""Tables of a run, and its files: JSON, Markdown and, with matplotlib, a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from revgrad import machine
from revgrad.benchmarks import pages, plot
from revgrad.benchmarks.capacity.run import Row
from revgrad.benchmarks.capacity.settings import Settings
from revgrad.benchmarks.peers import ADAPTORS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MIB = 2**20
_STATUS = {"missing": "not available", "failed": "failed"}


def tables(settings: Settings, rows: Sequence[Row]) -> str:
    """All tables in Markdown, aligned for the eye."""
    parts = []
    for question in settings.questions:
        found = [row for row in rows if row.question == question.name]
        lines = [_line(row, found[0]) for row in found]
        head = ("method", "largest", "pixels / first", "peak MiB", "images/s", "Mpixel/s")
        parts += [f"Largest {question.name}:", pages.table(head, lines)]
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in _notes(settings, rows))])


def write(settings: Settings, rows: Sequence[Row], facts: machine.Facts, folder: Path) -> Path:
    """Write the files into a folder, and return the Markdown page."""
    record = {"what": "capacity", "machine": facts, "settings": asdict(settings)}
    how = "measured" if settings.device == "cuda" else "estimated"
    what = "-".join(("capacity", how, *([settings.dtype] if settings.dtype != "float32" else [])))
    name = pages.name(facts, what, f"{settings.budget // 10**6}-mb")
    return pages.write(
        folder / f"{name}.md",
        record,
        [asdict(row) for row in rows],
        draw=lambda: _picture(settings, rows),
        text=lambda picture: _page(settings, rows, facts, name if picture else ""),
    )


def _page(settings: Settings, rows: Sequence[Row], facts: machine.Facts, picture: str) -> str:
    listed = {name: value for name, value in asdict(settings).items() if name != "questions"}
    parts = [
        f"# What fits into {settings.budget / 1e9:g} GB",
        _introduction(settings),
        *([f"![Largest sizes]({picture}.png)"] if picture else []),
        tables(settings, rows),
        pages.configuration(listed, facts),
    ]
    return "\n\n".join(parts)


def _introduction(settings: Settings) -> str:
    how = (
        "Sizes were tried out: steps ran while the allocator was held to the budget. Times are "
        f"medians of {settings.repeats} steps at the largest size."
        if settings.device == "cuda"
        else "Nothing was run: sizes are those at which `revgrad.memory.estimate` says that "
        "the step goes through if CUDA's allocator can reserve no more than the budget. "
        "Workspaces of cuDNN and the CUDA context come on top. Nothing is known of time."
    )
    return (
        "A training step with AdamW of a 3x3 convolution from one channel, a chain of additive "
        f"couplings ({settings.depth} sub-networks of convolution 3, instance norm and leaky "
        f"ReLU; {settings.channels} channels), and a 1x1 convolution to two classes. All methods "
        f"run the same sub-networks. {how}"
    )


def _line(row: Row, first: Row) -> tuple[object, ...]:
    if row.size is None:
        return (row.method, _STATUS[row.status], "-", "-", "-", "-")
    ratio = f"{row.voxels / first.voxels:.1f}" if row.voxels and first.voxels else "-"
    return (
        row.method,
        row.size,
        ratio,
        "-" if row.peak is None else f"{row.peak / _MIB:.0f}",
        "-" if row.images_per_second is None else f"{row.images_per_second:.2f}",
        "-" if row.voxels_per_second is None else f"{row.voxels_per_second / 1e6:.2f}",
    )


def _notes(settings: Settings, rows: Sequence[Row]) -> Iterator[str]:
    """Once each: what the methods are, and why figures are missing."""
    for method in settings.methods:
        yield f"{method}: {ADAPTORS[method].about}"
    for method, status, reason in dict.fromkeys((r.method, r.status, r.reason) for r in rows):
        if reason:
            yield f"{method}: {'failed, ' if status == 'failed' else ''}{reason}"


def _picture(settings: Settings, rows: Sequence[Row]) -> Figure:
    """A bar for each method, for each question."""
    picture = plot.figure((11, 3.6))
    every = picture.subplots(1, len(settings.questions), squeeze=False)[0]
    for axes, question in zip(every, settings.questions, strict=True):
        sizes = {r.method: r.size for r in rows if r.question == question.name and r.size}
        names = list(reversed(sizes))
        values = [sizes[name] for name in names]
        axes.bar_label(axes.barh(names, values, color=list(map(plot.color, names))), padding=3)
        axes.set_title(f"Largest {question.name}")
        axes.set_xticks([])
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    return picture
