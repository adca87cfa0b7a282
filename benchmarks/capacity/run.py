"""A whole run: the largest size of every method, question by question."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from revgrad.benchmarks.capacity.judges import Estimate, Judge, Trial
from revgrad.benchmarks.capacity.settings import ESTIMATED, Question, Settings
from revgrad.benchmarks.capacity.sizes import guess_from, largest
from revgrad.benchmarks.peers import available

Show = Callable[[str], None]


@dataclass
class Row:
    """What was found out about one method on one question.

    Attributes:
        question: Name of the question.
        method: Name of the adaptor.
        status: "measured", "estimated", "missing" (not installed, or not to be estimated) or
            "failed".
        reason: Why there is no figure.
        size: The largest that fits: samples, or pixels along each axis; 0: not even one.
        voxels: Pixels or voxels of the whole input of that size.
        peak: Bytes of tensors at the peak of a step there.
        seconds: Of such a step, where it was measured.
        images_per_second: Samples of the batch in a second.
        voxels_per_second: The same in pixels or voxels, to compare different sizes.
    """

    question: str
    method: str
    status: str
    reason: str = ""
    size: int | None = None
    voxels: int | None = None
    peak: int | None = None
    seconds: float | None = None
    images_per_second: float | None = None
    voxels_per_second: float | None = None


def run(settings: Settings, show: Show) -> list[Row]:
    """Search everything; `show` is told after each search what came of it."""
    rows = []
    for question in settings.questions:
        for method in settings.methods:
            row = _row(method, question, settings)
            show(f"{question.name}, {method}: {_short(row)}")
            rows.append(row)
    return rows


def _short(row: Row) -> str:
    return row.status if row.size is None else f"{row.size} ({row.status})"


def _row(method: str, question: Question, settings: Settings) -> Row:
    state = available(method)
    if not state:
        return Row(question.name, method, "missing", state.reason)
    measured = settings.device == "cuda"
    if not measured and method not in ESTIMATED:
        return Row(question.name, method, "missing", "only measured, on a GPU")
    try:
        judge: Judge = (Trial if measured else Estimate)(method, question, settings)
        row = Row(question.name, method, "measured" if measured else "estimated")
        _fill(row, judge, question, settings.budget)
        return row
    except Exception as error:  # a library's failure is a result like any other
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return Row(question.name, method, "failed", text[:300])


def _fill(row: Row, judge: Judge, question: Question, budget: int) -> None:
    guess = guess_from(judge.peak, question.volume, budget)
    size = largest(judge.fits, guess)
    row.size = size * question.unit
    if not size:
        return
    row.voxels, row.peak = question.volume(size), judge.peak(size)
    row.seconds = judge.seconds(size)
    if row.seconds is not None:
        row.images_per_second = question.shape(size)[0] / row.seconds
        row.voxels_per_second = row.voxels / row.seconds
