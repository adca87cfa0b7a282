"""The part of an evaluation that only a known truth allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from revgrad.markdown import table
from revgrad.models.metrics import KnownTruthReport

Reports = Mapping[str, KnownTruthReport]


def truth_page(reports: Reports, unets: Sequence[str], switches: Sequence[str]) -> str:
    """Markdown: how far each run is from the truth, and the frequency of every mode.

    Args:
        reports: of each run.
        unets: the runs among them that are deterministic; the first one sets the measure.
        switches: names of the classes that switch.
    """
    parts = [
        "## Known truth\n",
        "GED² over the classes that switch, a class that neither map has left out (Kohl et al. "
        "2018). 0 is a perfect model's mean.\n",
        table(("", *reports), _distances(reports, unets)) + "\n",
        "Share of the samples in which a class flips; share of its pixels that do so as one; share "
        "of the samples in which 95 % of them do; share of its pixels that are found at all, as "
        "either class:\n",
        table(("", *reports), _switches(reports, switches)) + "\n",
        "Frequency of each mode, by its probability (bit i: the i-th class flips):\n",
        table(("mode", "truth", *reports), _modes(reports)) + "\n",
    ]
    return "\n".join(parts)


def truth_record(reports: Reports, unets: Sequence[str]) -> dict[str, Any]:
    """The same as JSON takes it."""
    measure = _unet_ged(reports, unets)
    return {
        name: {
            "GED²": _mean(report.ged),
            "perfect model": _mean(report.limits.perfect),
            "best single mode": _mean(report.limits.single_mode),
            "normalized by the best single mode": report.normalized_ged,
            "normalized by the U-Net": None if measure is None else report.normalized_by(measure),
            "total variation": report.total_variation,
            "of as many true samples": report.true_variation,
            **{key: getattr(report, key).tolist() for key in ("flipped", "as_one", "whole")},
            "recalled": report.recalled.tolist(),
            "frequencies": report.frequencies.tolist(),
            "probabilities": report.probabilities.tolist(),
        }
        for name, report in reports.items()
    }


def _distances(reports: Reports, unets: Sequence[str]) -> list[list[str]]:
    first = next(iter(reports.values()))

    def row(label: str, value: Callable[[KnownTruthReport], float], digits: int) -> list[str]:
        return [label, *(f"{value(report):.{digits}f}" for report in reports.values())]

    high = first.true_variation[1]
    rows = [
        row("GED²", lambda report: _mean(report.ged), 4),
        row("of a perfect model", lambda report: _mean(report.limits.perfect), 4),
        row("of the best single mode", lambda report: _mean(report.limits.single_mode), 4),
        row("(GED² - perfect) / (best single mode - perfect)", lambda r: r.normalized_ged, 3),
        row("total variation of the modes", lambda report: report.total_variation, 3),
        row(
            f"of as many true samples, 95 % of them below {high:.3f}",
            lambda report: report.true_variation[0],
            3,
        ),
        row("excess over their mean", lambda report: report.excess_variation, 3),
    ]
    if (measure := _unet_ged(reports, unets)) is not None:
        label = f"(GED² - perfect) / ((U-Net) - perfect), with {unets[0]} as the U-Net"
        rows.insert(4, row(label, lambda report: report.normalized_by(measure), 3))
    return rows


def _switches(reports: Reports, names: Sequence[str]) -> list[list[str]]:
    rows = []
    for index, name in enumerate(names):
        found = [
            (r.flipped[index], r.as_one[index], r.whole[index], r.recalled[index])
            for r in reports.values()
        ]
        kinds = ("flips", "as one", "whole", "found")
        for what, values in zip(kinds, zip(*found, strict=True), strict=True):
            rows.append([f"{name} {what}", *(f"{float(value):.3f}" for value in values)])
    return rows


def _modes(reports: Reports) -> list[list[str]]:
    truth = next(iter(reports.values())).probabilities
    return [
        [str(mode), f"{truth[mode]:.4f}", *(f"{r.frequencies[mode]:.4f}" for r in reports.values())]
        for mode in truth.argsort(descending=True, stable=True).tolist()
    ]


def _unet_ged(reports: Reports, unets: Sequence[str]) -> float | None:
    """What the trained U-Net scores, by the same report."""
    return _mean(reports[unets[0]].ged) if unets else None


def _mean(values: Tensor) -> float:
    return float(values.nanmean())
