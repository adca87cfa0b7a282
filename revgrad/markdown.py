"""Tables in Markdown, for pages that a run writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from revgrad.machine import Facts


def table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """A table in Markdown, aligned for the eye."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells)


def configuration(settings: Mapping[str, object], facts: Facts) -> str:
    """Everything that a run's figures depend on, as the end of its page.

    What has nothing in it, such as the versions of libraries of which none is installed, is left
    out.
    """
    values = [*settings.items(), *facts.items()]
    rows = [(key, _shown(value)) for key, value in values if value not in ({}, [], ())]
    return f"Configuration and machine:\n\n{table(('', ''), rows)}\n"


def _shown(value: object) -> object:
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {item}" for key, item in value.items())
    return value
