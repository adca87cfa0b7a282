"""The table of all cases and engines, as text for people and as JSON."""

from __future__ import annotations

from collections import Counter
from typing import Any

Outcomes = dict[str, list[dict[str, str]]]
SIGNS = {"right": "right", "error": "error", "wrong": "**wrong**", "not offered": "–"}


def table(names: list[str], outcomes: Outcomes) -> str:
    """A markdown table: a row a case, a column an engine, and the counts below."""
    engines = list(outcomes)
    lines = [
        "| case | " + " | ".join(engines) + " |",
        "|---|" + "---|" * len(engines),
    ]
    for i, name in enumerate(names):
        cells = (_sign(outcomes[engine][i]["outcome"]) for engine in engines)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for outcome, title in (("right", "right"), ("error", "errors"), ("wrong", "silently wrong")):
        counts = (Counter(o["outcome"] for o in outcomes[engine]) for engine in engines)
        cells = (str(count[outcome] + _crashes(count, outcome)) for count in counts)
        lines.append(f"| **{title}** | " + " | ".join(f"**{c}**" for c in cells) + " |")
    return "\n".join(lines) + "\n"


def _sign(outcome: str) -> str:
    return SIGNS.get(outcome, outcome)


def _crashes(count: Counter[str], outcome: str) -> int:
    return count["crash"] if outcome == "error" else 0


def reasons(names: list[str], outcomes: Outcomes, engine: str) -> list[str]:
    """A line for each case in which an engine was not right, with what it said."""
    pairs = zip(names, outcomes[engine], strict=True)
    return [f"{name}: {o['outcome']}: {o['why']}" for name, o in pairs if o["outcome"] != "right"]


def as_dict(names: list[str], outcomes: Outcomes, machine: dict[str, Any]) -> dict[str, Any]:
    """All that was found, with the machine it was found on."""
    return {"machine": machine, "cases": names, "outcomes": outcomes}
