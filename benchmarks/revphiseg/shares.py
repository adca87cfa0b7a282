"""Figures of a variant by those of PHiSeg at the same point."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from revgrad.benchmarks.revphiseg.networks import BASE
from revgrad.benchmarks.revphiseg.run import Row


def peak(row: Row) -> int:
    """Bytes at the peak, without the convolutions' scratch."""
    assert row.memory is not None
    return int(row.memory["peak_without_scratch"])


def whole_peak(row: Row) -> int:
    """Bytes at the peak with that scratch, as an allocator counts them."""
    assert row.memory is not None
    return int(row.memory["peak"])


def saved(row: Row) -> int:
    """Bytes that autograd saves."""
    assert row.saved is not None
    return row.saved


def by_base(value: Callable[[Row], int | None], row: Row, rows: Sequence[Row]) -> float | None:
    """A value by that of the base at the same point; None where either was not measured."""
    bases = [r for r in rows if r.variant == BASE and r.point == row.point and r.memory is not None]
    if not bases or row.memory is None or row.variant == BASE:
        return None
    own, base = value(row), value(bases[0])
    return None if own is None or not base else own / base
