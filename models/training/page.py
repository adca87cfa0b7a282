"""The page and the record of an evaluation."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from revgrad.machine import Facts
from revgrad.markdown import configuration, table
from revgrad.models.training.checkpoint import write_atomically
from revgrad.models.training.intervals import Interval
from revgrad.words import counted

NAME = "evaluation"
Summaries = Mapping[str, Mapping[str, Interval]]


def page(
    settings: Mapping[str, Any],
    machine: Facts,
    summaries: Summaries,
    differences: Mapping[str, Interval],
    truth: str,
) -> str:
    """Everything in Markdown: figures, then what they depend on."""
    metrics = list(dict.fromkeys(name for found in summaries.values() for name in found))
    rows = [
        [metric, *(_cell(found.get(metric)) for found in summaries.values())] for metric in metrics
    ]
    parts = [
        f"# Evaluation\n\n{settings['data']}\n",
        f"{counted(settings['cases'], 'case')} of {counted(settings['patients'], 'patient')}, "
        "means over cases with 95 % intervals over patients (bootstrap).\n",
        table(("", *summaries), rows) + "\n",
    ]
    if differences:
        rows = [[name, _cell(value)] for name, value in differences.items()]
        parts.append(table(("paired difference", ""), rows) + "\n")
    if truth:
        parts.append(truth)
    # The machine says how many threads there were, where the settings have 0 for torch's own.
    shown = {key: value for key, value in settings.items() if key != "threads"}
    return "\n".join([*parts, configuration(shown, machine)])


def write(run: Path, text: str, record: Mapping[str, Any]) -> None:
    """Write page and record into a run's folder; each whole or not at all."""
    write_atomically(run / f"{NAME}.md", text.encode())
    strict = json.dumps(_without_nan(record), indent=1, allow_nan=False)
    write_atomically(run / f"{NAME}.json", f"{strict}\n".encode())


def named(summaries: Summaries) -> dict[str, Any]:
    """The intervals as JSON takes them."""
    return {run: {k: v._asdict() for k, v in found.items()} for run, found in summaries.items()}


def _cell(value: Interval | None) -> str:
    if value is None:
        return ""
    if math.isnan(value.mean):
        return "undefined"
    if math.isnan(value.low):
        return f"{value.mean:.4g}"  # of one patient
    return f"{value.mean:.4g} ({value.low:.4g} to {value.high:.4g})"


def _without_nan(value: Any) -> Any:
    """The same with None in place of numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
