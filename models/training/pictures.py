"""The figures of an evaluation, into the folder of each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from revgrad.models import figures
from revgrad.models.data import CaseDataset
from revgrad.models.metrics import ged_limits
from revgrad.models.training.intervals import Interval
from revgrad.models.training.judge import Judged, has_known_truth
from revgrad.models.training.loop import LOG
from revgrad.models.training.references import AT_CENTRE, MAJORITY, RESAMPLED, THRESHOLDING
from revgrad.models.training.scores import ged_counts, ged_name
from revgrad.words import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHEET, GED, MODES, TRAINING = "sheet.png", "ged.png", "modes.png", "training.png"
Summaries = Mapping[str, Mapping[str, Interval]]


def draw(
    judged: Mapping[Path, Judged],
    dataset: CaseDataset,
    indices: Sequence[int],
    shown: Sequence[int],
    summaries: Summaries,
) -> list[str]:
    """Draw all figures, whole or not at all each.

    Args:
        judged: of each run's folder.
        dataset: the cases.
        indices: those that were scored.
        shown: those that the sheets show.
        summaries: of the runs, by their path, and of the references.

    Returns:
        The names of the files in each folder.

    Raises:
        MissingExtraError: matplotlib is not installed; nothing is written then.
    """
    names = _short_names(list(judged))
    made = {GED: figures.ged_against_n(**_curves(names, summaries, dataset, indices))}
    if has_known_truth(dataset):
        made[MODES] = _modes(judged, names, dataset)
    for run in judged:
        for name, figure in made.items():
            figures.save(figure, run / name)
        _draw_own(run, names[run], judged[run], dataset, shown)
    return [SHEET, TRAINING, *made]


def _draw_own(
    run: Path, name: str, judged: Judged, dataset: CaseDataset, shown: Sequence[int]
) -> None:
    """What shows one run only: samples beside annotators, and how training went."""
    figure = figures.sheet(
        [dataset[index] for index in shown],
        judged.shown,
        classes=dataset.classes,
        caption=f"{dataset.title}; {name}",
        margin=8 if dataset.spatial_dims == 2 and len(dataset.classes) == 2 else None,
    )
    figures.save(figure, run / SHEET)
    if (run / LOG).is_file():
        records = figures.read_log(run / LOG)
        curves = figures.training_curves(records, caption=f"{name} on {dataset.title}")
        figures.save(curves, run / TRAINING)


def _curves(
    names: Mapping[Path, str], summaries: Summaries, dataset: CaseDataset, indices: Sequence[int]
) -> dict[str, Any]:
    """What `ged_against_n` draws: of a known truth a perfect model, else annotators drawn again."""
    known = has_known_truth(dataset)
    models = {name: _ged(summaries[str(run)]) for run, name in names.items()}
    if not known:
        models[RESAMPLED] = _ged(summaries[RESAMPLED])
    counts = sorted({n for values in models.values() for n in values})
    most = ged_name(max(counts))
    single = {name: summaries[name][most].mean for name in (THRESHOLDING, AT_CENTRE, MAJORITY)
              if name in summaries}  # fmt: skip
    caption = (
        f"{dataset.title}\nmean over {counted(len(indices), 'case')}, 95 % intervals over patients"
    )
    perfect = _perfect(dataset, indices, counts) if known else None
    return {"models": models, "perfect": perfect, "baselines": single, "caption": caption}


def _ged(summary: Mapping[str, Interval]) -> dict[int, Interval]:
    """The GED of each number of samples; the interval holds the mean in spite of rounding."""
    found = {n: summary[ged_name(n)] for n in ged_counts(summary)}
    return {n: Interval(v.mean, min(v), max(v)) for n, v in found.items()}


def _perfect(
    dataset: CaseDataset, indices: Sequence[int], counts: Sequence[int]
) -> dict[int, float]:
    """What a perfect model scores, by the definition of the table."""
    total = 0.0
    for index in indices:
        case = dataset[index]
        assert case.weights is not None
        limits = ged_limits(
            case.annotators,
            case.weights,
            draws=1,
            num_classes=len(dataset.classes),
            spatial_dims=dataset.spatial_dims,
        )
        total += float(limits.perfect)
    return {n: total / len(indices) / n for n in counts}  # it falls as one over n


def _modes(
    judged: Mapping[Path, Judged], names: Mapping[Path, str], dataset: CaseDataset
) -> Figure:
    reports = {names[run]: found.truth for run, found in judged.items() if found.truth is not None}
    pairs = dataset[0].facts["switches"]
    first = next(iter(reports.values()))
    draws = first.draws * len(first.ged)
    labels = [dataset.classes[label] for label, _ in pairs]
    modes = torch.arange(len(first.probabilities))  # bit i of a mode's number is switch i
    flipped = torch.stack([modes >> place & 1 for place in range(len(pairs))]).double()
    return figures.mode_shares(
        {name: report.frequencies for name, report in reports.items()},
        first.probabilities,
        switches=labels,
        switch_truth=flipped @ first.probabilities,
        switched={name: report.flipped for name, report in reports.items()},
        draws=draws,
        caption=f"{dataset.title}; {draws} samples",
    )


def _short_names(runs: Sequence[Path]) -> dict[Path, str]:
    """The name of each run's folder, or its path where names are alike."""
    names = {run: run.resolve().name for run in runs}
    return names if len(set(names.values())) == len(runs) else {run: str(run) for run in runs}
