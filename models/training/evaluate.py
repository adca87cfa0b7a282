"""``revgrad evaluate``: the papers' table of one or more runs, with intervals over patients."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from revgrad.machine import Facts, facts
from revgrad.markdown import configuration, table
from revgrad.models.data import CaseDataset
from revgrad.models.training.batches import spread
from revgrad.models.training.checkpoint import (
    BEST,
    LATEST,
    load,
    load_dataset,
    load_segmenter,
    write_atomically,
)
from revgrad.models.training.intervals import Interval, Resampling
from revgrad.models.training.scores import (
    CaseScores,
    ged_name,
    no_learning,
    paired_difference,
    score,
    score_network,
    summary,
)

NAME = "evaluation"
Summaries = dict[str, dict[str, Interval]]


@dataclass(frozen=True)
class Settings:
    """How runs are evaluated; all of it goes onto the page."""

    split: str = "test"
    checkpoint: str = "best"
    samples: int = 16
    cases: int = 0
    seed: int = 0
    device: str = "cpu"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `revgrad evaluate`."""
    default = Settings()
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--split", choices=("train", "val", "test"), default=default.split)
    parser.add_argument("--checkpoint", choices=("best", "latest"), default=default.checkpoint)
    parser.add_argument("--samples", type=int, default=default.samples, help="(%(default)s)")
    parser.add_argument(
        "--cases", type=int, default=default.cases, help="evenly spaced; 0 for all (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=default.seed, help="(%(default)s)")
    parser.add_argument("--device", default=default.device, help="(%(default)s)")


def main(args: argparse.Namespace) -> int:
    """Evaluate the runs, print the table and write it into each run's folder."""
    options = {name: getattr(args, name) for name in Settings.__dataclass_fields__}
    try:
        text = evaluate(args.runs, Settings(**options))
    except (ValueError, OSError) as error:
        print(f"revgrad evaluate: {error}", file=sys.stderr)
        return 1
    print(text)
    return 0


def evaluate(runs: Sequence[Path], settings: Settings) -> str:
    """Score runs and the predictions without learning on the same cases.

    Writes evaluation.md and evaluation.json into each run's folder.

    Returns:
        The page.

    Raises:
        ValueError: A number is out of range, a run's folder holds no checkpoint, or the runs were
            configured with different data.
    """
    if settings.samples < 1 or settings.cases < 0 or settings.seed < 0:
        raise ValueError("samples must be at least 1, cases and seed at least 0")
    dataset = _common_dataset(runs, settings.split)
    scores = {}
    for run in runs:
        network = load_segmenter(run, settings.checkpoint).to(settings.device)
        scores[str(run)] = score_network(
            network, dataset, n=settings.samples, cases=settings.cases, seed=settings.seed
        )
    first = scores[str(runs[0])]
    resampling = Resampling([case.patient for case in first], seed=settings.seed)
    summaries = {name: summary(found, resampling) for name, found in scores.items()}
    summaries |= _baselines(dataset, settings, resampling)
    differences = _differences(scores, settings.samples, resampling)
    record = {
        **vars(settings),
        "data": dataset.title,
        "cases": len(first),  # settings say 0 for all
        "patients": resampling.count,
        "steps": {str(run): _step(run, settings.checkpoint) for run in runs},
    }
    machine = facts(settings.device)
    page = _page(record, machine, summaries, differences)
    for run in runs:
        rows: dict[str, Any] = {"settings": record, "machine": machine, "scores": _named(summaries)}
        rows |= {"paired differences": {k: v._asdict() for k, v in differences.items()}}
        rows |= {"by case": [{"name": c.name, **c.values} for c in scores[str(run)]]}
        _write(run, page, rows)
    return page


def _common_dataset(runs: Sequence[Path], split: str) -> CaseDataset:
    """The data that all runs were configured with."""
    if len(set(runs)) < len(runs):
        raise ValueError("a run is named twice")
    keys = ("data", "data_options", "seed")
    asked = [{key: load(run / LATEST).facts["config"][key] for key in keys} for run in runs]
    for run, other in zip(runs, asked, strict=True):
        if other != asked[0]:
            raise ValueError(f"{run} has other data than {runs[0]}: {other} and {asked[0]}")
    dataset: CaseDataset = load_dataset(runs[0], split)
    return dataset


def _baselines(dataset: CaseDataset, settings: Settings, resampling: Resampling) -> Summaries:
    indices = spread(len(dataset), settings.cases)
    try:
        predictions = no_learning(dataset, indices, settings.samples)
    except ModuleNotFoundError:
        return {}
    found = {}
    for name, predict in predictions.items():
        found[name] = summary(score(predict, dataset, indices, settings.seed), resampling)
    return found


def _differences(
    scores: Mapping[str, Sequence[CaseScores]], n: int, resampling: Resampling
) -> dict[str, Interval]:
    """Of the first run's GED and each other one's."""
    (first, mine), *others = scores.items()
    return {
        f"{first} - {name}": paired_difference(mine, found, ged_name(n), resampling)
        for name, found in others
    }


def _page(
    record: Mapping[str, Any],
    machine: Facts,
    summaries: Summaries,
    differences: Mapping[str, Interval],
) -> str:
    metrics = list(dict.fromkeys(name for found in summaries.values() for name in found))
    rows = [
        [metric, *(_cell(found.get(metric)) for found in summaries.values())] for metric in metrics
    ]
    parts = [
        f"# Evaluation\n\n{record['data']}\n",
        f"{record['cases']} cases of {record['patients']} patients, means over cases with 95 % "
        "intervals over patients (bootstrap).\n",
        table(("", *summaries), rows) + "\n",
    ]
    if differences:
        rows = [[name, _cell(value)] for name, value in differences.items()]
        parts.append(table(("paired difference", ged_name(record["samples"])), rows) + "\n")
    return "\n".join([*parts, configuration(record, machine)])


def _cell(value: Interval | None) -> str:
    if value is None:
        return ""
    return f"{value.mean:.4g} ({value.low:.4g} to {value.high:.4g})"


def _named(summaries: Summaries) -> dict[str, Any]:
    return {run: {k: v._asdict() for k, v in found.items()} for run, found in summaries.items()}


def _step(run: Path, which: str) -> int:
    return int(load(run / (BEST if which == "best" else LATEST)).facts["step"])


def _write(run: Path, page: str, record: Mapping[str, Any]) -> None:
    write_atomically(run / f"{NAME}.md", page.encode())
    text = json.dumps(_without_nan(record), indent=1, allow_nan=False)
    write_atomically(run / f"{NAME}.json", f"{text}\n".encode())


def _without_nan(value: Any) -> Any:
    """The same with None in place of numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
