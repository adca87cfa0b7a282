"""What the reports of the benchmarks share: names and files of a run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revgrad.machine import Facts
from revgrad.markdown import configuration as configuration
from revgrad.markdown import table as table
from revgrad.optional import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def name(facts: Facts, what: str, *apart: str) -> str:
    """Names a run by its date, what was measured, what sets it apart, and processor or GPU.

    Args:
        facts: Of the machine.
        what: The benchmark, and more that shall stand before the processor.
        *apart: What shall stand behind it.
    """
    machine = re.sub(r"\W+", "-", str(facts.get("gpu", facts["cpu"])).lower()).strip("-")
    return "-".join((str(facts["date"])[:10], what, machine, *apart))


def write(
    page: Path,
    record: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    text: Callable[[bool], str],
    draw: Callable[[], Figure] | None = None,
) -> Path:
    """Write a run's files into a folder: JSON, Markdown and, with matplotlib, a picture.

    Args:
        page: The Markdown page; the other files stand beside it.
        record: What was run and where, for JSON.
        rows: All that was found.
        text: Makes the page; told whether there is a picture.
        draw: Makes the picture, if there shall be one.

    Returns:
        The page.
    """
    page.parent.mkdir(parents=True, exist_ok=True)
    page.with_suffix(".json").write_text(_json(record, rows), encoding="utf-8")
    picture = draw is not None and _save(draw, page.with_suffix(".png"))
    page.write_text(text(picture), encoding="utf-8")
    return page


def _json(record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The record with its rows as one object, a line for each row."""
    lines = ",\n  ".join(map(json.dumps, rows))
    return f'{json.dumps(record, indent=1)[:-2]},\n "rows": [\n  {lines}\n ]\n}}\n'


def _save(draw: Callable[[], Figure], path: Path) -> bool:
    """Draw the picture if matplotlib is there; else say how to get it."""
    try:
        draw().savefig(path, dpi=120)
    except MissingExtraError as error:
        print(f"No picture: {error}")
        return False
    return True
