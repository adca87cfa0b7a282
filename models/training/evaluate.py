"""``revgrad evaluate``: the papers' table of one or more runs, with intervals over patients."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from revgrad.machine import facts
from revgrad.models.data import Case, CaseDataset
from revgrad.models.figures import read_log
from revgrad.models.progress import Progress
from revgrad.models.training import page, pictures
from revgrad.models.training.batches import spread
from revgrad.models.training.checkpoint import (
    BEST,
    LATEST,
    load,
    load_dataset,
    load_segmenter,
)
from revgrad.models.training.device import check_device
from revgrad.models.training.intervals import Interval, Resampling
from revgrad.models.training.judge import Judged, judge
from revgrad.models.training.loop import LOG
from revgrad.models.training.references import MAJORITY, references
from revgrad.models.training.registry import DETERMINISTIC, seeded
from revgrad.models.training.scores import (
    CaseScores,
    Predict,
    common_ged,
    paired_difference,
    predictor,
    scored,
    summary,
)
from revgrad.models.training.truth_page import Reports, truth_page, truth_record
from revgrad.optional import MissingExtraError

Summaries = dict[str, dict[str, Interval]]


@dataclass(frozen=True)
class Settings:
    """How runs are evaluated; all of it goes onto the page."""

    split: str = "test"
    checkpoint: str = "best"
    samples: int = 16
    cases: int = 0
    shown: int = 4
    seed: int = 0
    device: str = "cpu"
    threads: int = 0


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
    parser.add_argument(
        "--shown", type=int, default=default.shown, help="cases on the sheet (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=default.seed, help="(%(default)s)")
    parser.add_argument("--device", default=default.device, help="(%(default)s)")
    parser.add_argument(
        "--threads",
        type=int,
        default=default.threads,
        help="of the CPU; 0 for as many as torch takes",
    )


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

    Writes evaluation.md, evaluation.json and, with matplotlib, figures into each run's folder.

    Returns:
        The page, and which figures were written.

    Raises:
        ValueError: A number is out of range, the device is not there, a run's folder holds no
            checkpoint, or the runs were configured with different data.
    """
    if settings.samples < 1 or settings.cases < 0 or settings.seed < 0 or settings.shown < 1:
        raise ValueError("samples and shown must be at least 1, cases and seed at least 0")
    if settings.threads < 0:
        raise ValueError(f"threads must be at least 0, not {settings.threads}")
    check_device(settings.device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    dataset = _common_dataset(runs, settings)
    indices = spread(len(dataset), settings.cases)
    shown = [indices[place] for place in spread(len(indices), settings.shown)]
    judged = {run: _judge_run(run, dataset, indices, shown, settings) for run in runs}
    first = judged[runs[0]].scores
    resampling = Resampling([case.patient for case in first], seed=settings.seed)
    summaries = {str(run): summary(found.scores, resampling) for run, found in judged.items()}
    beside = _references(dataset, indices, settings)
    summaries |= {name: summary(scores, resampling) for name, scores in beside.items()}
    record = {
        **vars(settings),
        "data": dataset.title,
        "cases": len(first),  # settings say 0 for all
        "patients": resampling.count,
        "trained": {str(run): _trained(run, settings.checkpoint) for run in runs},
    }
    differences = _differences(judged, beside[MAJORITY], resampling)
    text = _write(judged, record, summaries, differences, dataset)
    try:
        names = pictures.draw(judged, dataset, indices, shown, summaries)
    except MissingExtraError as error:
        return f"{text}\nNo figures: {error}"
    return f"{text}\nIn each run's folder: {', '.join(names)}"


def _judge_run(
    run: Path,
    dataset: CaseDataset,
    indices: Sequence[int],
    shown: Sequence[int],
    settings: Settings,
) -> Judged:
    network = load_segmenter(run, settings.checkpoint).to(settings.device)
    if (most := network.most_samples) is not None and most < settings.samples:
        print(f"{run} gives {most} samples: judged by these")
    predict = predictor(network, settings.samples, settings.seed)
    predict = _told(predict, str(run), len(indices))
    return judge(predict, dataset, indices, settings.seed, shown)


def _told(predict: Predict, name: str, total: int) -> Predict:
    """The same predictions, with their progress on standard error: the page goes to the other."""
    progress, done = Progress(total, sys.stderr), itertools.count(1)

    def told(case: Case, index: int) -> Tensor:
        probabilities = predict(case, index)
        progress(next(done), name)
        return probabilities

    return told


def _common_dataset(runs: Sequence[Path], settings: Settings) -> CaseDataset:
    """The data that all runs were configured with."""
    if len(set(runs)) < len(runs):
        raise ValueError("a run is named twice")
    asked = []
    for run in runs:
        config = _facts(run, settings.checkpoint)["config"]
        options = seeded(config["data"], config["seed"], config["data_options"])
        asked.append({"data": config["data"], "data_options": options})
    for run, other in zip(runs, asked, strict=True):
        if other != asked[0]:
            raise ValueError(f"{run} has other data than {runs[0]}: {other} and {asked[0]}")
    dataset: CaseDataset = load_dataset(runs[0], settings.split, settings.checkpoint)
    return dataset


def _references(
    dataset: CaseDataset, indices: Sequence[int], settings: Settings
) -> dict[str, list[CaseScores]]:
    """What predictions without learning score of each case."""
    return {
        name: [score for _, score, _ in scored(predict, dataset, indices, settings.seed)]
        for name, predict in references(dataset, settings.samples, settings.seed).items()
    }


def _differences(
    judged: Mapping[Path, Judged], majority: list[CaseScores], resampling: Resampling
) -> dict[str, Interval]:
    """Of GED at the most samples that both have: first run less others, each less the majority."""
    runs = {str(run): found.scores for run, found in judged.items()}
    first, *others = runs
    pairs = [(first, name) for name in others] + [(name, MAJORITY) for name in runs]
    found = {}
    for one, other in pairs:
        scores = runs[one], {**runs, MAJORITY: majority}[other]
        metric = common_ged(*scores)
        found[f"{metric}: {one} - {other}"] = paired_difference(*scores, metric, resampling)
    return found


def _write(
    judged: Mapping[Path, Judged],
    settings: Mapping[str, Any],
    summaries: Summaries,
    differences: Mapping[str, Interval],
    dataset: CaseDataset,
) -> str:
    """Write page and record into each run's folder."""
    machine = facts(settings["device"])
    reports: Reports = {str(run): found.truth for run, found in judged.items() if found.truth}
    unets = [run for run in reports if _facts(Path(run), settings["checkpoint"])["config"]["model"]
             in DETERMINISTIC]  # fmt: skip
    truth = ""
    if reports:
        switches = [dataset.classes[label] for label, _ in dataset[0].facts["switches"]]
        truth = truth_page(reports, unets, switches)
    text = page.page(settings, machine, summaries, differences, truth)
    both = {
        "settings": settings,
        "machine": machine,
        "scores": page.named(summaries),
        "paired differences": {k: v._asdict() for k, v in differences.items()},
        "known truth": truth_record(reports, unets),
    }
    for run, found in judged.items():
        by_case = [{"name": case.name, **case.values} for case in found.scores]
        page.write(run, text, {**both, "by case": by_case})
    return text


def _trained(run: Path, which: str) -> str:
    """For how long a checkpoint was trained, by the clock of the steps alone."""
    facts = _facts(run, which)
    step, batch = facts["step"], facts["config"]["batch_size"]
    taken = [line for line in read_log(run / LOG) if line["step"] <= step]
    minutes = sum(batch / line["images_per_second"] for line in taken) / 60
    return f"{step} steps, {minutes:.1f} min"


def _facts(run: Path, which: str) -> dict[str, Any]:
    return load(run / (BEST if which == "best" else LATEST)).facts
