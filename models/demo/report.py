"""The demo's report: ``report.md``, ``demo.json`` and, with matplotlib, two pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, median
from typing import Any

from revgrad.machine import facts as machine_facts
from revgrad.markdown import table
from revgrad.models.data.organs import ORGANS
from revgrad.models.demo.run import Outcome
from revgrad.models.demo.slices import WINDOWS
from revgrad.models.demo.train import NUDGED, VARIANTS
from revgrad.optional import MissingExtraError

_MIB = 2**20


def write(outcome: Outcome, folder: Path) -> None:
    """Write the report into an existing folder and print its main tables."""
    pictures = _draw(outcome, folder)
    facts = collect(outcome)
    (folder / "demo.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(_page(facts, pictures), encoding="utf-8")
    print(f"\n{_cost_table(facts)}\n\n{_distance_table(facts)}")
    print(f"\nThe whole report: {folder / 'report.md'}")


def collect(outcome: Outcome) -> dict[str, Any]:
    """Everything that was configured and found, ready for JSON."""
    others = ("reversible", NUDGED)
    return {
        "machine": machine_facts(outcome.settings.device),
        "configuration": asdict(outcome.settings) | {"windows": WINDOWS},
        "parameters": outcome.parameters,
        "slices": {"training": outcome.training.numbers, "held_out": outcome.held_out.numbers},
        "memory": {variant: report.as_dict() for variant, report in outcome.memory.items()},
        "memory_ratio": outcome.memory_ratio,
        "step_seconds": {variant: median(times) for variant, times in outcome.seconds.items()},
        "time_ratio": outcome.time_ratio,
        "gradient_errors": outcome.gradient_errors,
        "largest_loss_distance": {name: max(outcome.loss_distances(name)) for name in others},
        "same_prediction": {name: outcome.agreement(name) for name in others},
        "dice": {v: {o: _number(d) for o, d in found.items()} for v, found in outcome.dice.items()},
        "losses": outcome.losses,
        "seconds": outcome.seconds,
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value  # JSON knows no NaN


def _draw(outcome: Outcome, folder: Path) -> bool:
    """Draw the pictures if matplotlib is there; else say how to get it."""
    try:
        from revgrad.models.demo import plots

        plots.draw(outcome, folder)
    except MissingExtraError as error:
        print(f"No plots: {error}")
        return False
    return True


def _page(facts: Mapping[str, Any], pictures: bool) -> str:
    parts = [
        "# revgrad demo",
        _introduction(facts),
        "## Memory and time of a training step",
        _cost_table(facts),
        _cost_notes(facts),
        _memory_table(facts),
        *(["![Loss, memory and time](training.png)"] if pictures else []),
        "## The same training",
        _error_table(facts),
        _error_notes(),
        _distance_table(facts),
        "## What was learned",
        _dice_table(facts),
        _caution(facts),
        *(["![CT, labels and prediction](predictions.png)"] if pictures else []),
        "## Configuration and machine",
        table(("", ""), [*facts["configuration"].items(), *facts["machine"].items()]),
    ]
    return "\n\n".join(parts) + "\n"


def _introduction(facts: Mapping[str, Any]) -> str:
    return (
        "One iUNet (`revgrad.models.iUNet`), a fully invertible U-Net, was trained twice on axial "
        "slices of a CT volume, from the same weights on the same batches: once with ordinary "
        "autograd (plain), once computing the activations back instead of storing them "
        f"(reversible). It took {facts['memory_ratio']:.2f} times the memory and "
        f"{facts['time_ratio']:.2f} times the time of plain training."
    )


def _cost_table(facts: Mapping[str, Any]) -> str:
    memory, seconds = facts["memory"], facts["step_seconds"]
    peaks = (f"{memory[variant]['peak'] / _MIB:.1f}" for variant in VARIANTS)
    times = (f"{1000 * seconds[variant]:.0f}" for variant in VARIANTS)
    rows = [
        ("peak memory, MiB", *peaks, f"{facts['memory_ratio']:.2f}"),
        ("time of a step, ms", *times, f"{facts['time_ratio']:.2f}"),
    ]
    return table(("", *VARIANTS, "reversible / plain"), rows)


def _cost_notes(facts: Mapping[str, Any]) -> str:
    return (
        "Memory is that of PyTorch's tensors at the peak of a forward and backward pass; the state "
        "of the optimizer comes on top, the same in both. Times are medians over the steps, which "
        "the networks took in turn; their ratio is the median of the steps' ratios."
    )


def _memory_table(facts: Mapping[str, Any]) -> str:
    def row(label: str, field: str) -> tuple[str, ...]:
        return label, *(f"{facts['memory'][variant][field] / _MIB:.1f}" for variant in VARIANTS)

    rows = [
        row("kept for the backward pass", "kept_for_backward"),
        row("workspace", "workspace"),
        row("convolutions' scratch", "scratch"),
        row(f"parameters ({facts['parameters']:,})", "parameters"),
        row("gradients", "gradients"),
        row("other: batch, data set", "other"),
    ]
    return table(("At the peak, MiB", *VARIANTS), rows)


def _error_table(facts: Mapping[str, Any]) -> str:
    rows = [
        (when, *(f"{errors[variant]:.1e}" for variant in VARIANTS))
        for when, errors in facts["gradient_errors"].items()
    ]
    return table(("Error of the gradients", *VARIANTS), rows)


def _error_notes() -> str:
    return (
        "The error is the distance from the gradients of plain autograd in float64, over their "
        "norm, on the same weights and the same batch. Plain gradients are rounded, too, and "
        "training lets roundings grow. How far rounding alone takes plain training apart shows a "
        "third run: plain, from weights that were each moved by one rounding."
    )


def _distance_table(facts: Mapping[str, Any]) -> str:
    distances, same = facts["largest_loss_distance"], facts["same_prediction"]
    rows = [
        ("largest distance of the losses", *(f"{value:.1e}" for value in distances.values())),
        ("held-out pixels labelled alike, %", *(f"{100 * value:.1f}" for value in same.values())),
    ]
    return table(("Against plain training", "reversible", "plain, weights moved"), rows)


def _dice_table(facts: Mapping[str, Any]) -> str:
    found = [facts["dice"][variant] for variant in VARIANTS]
    rows = [(organ, *(_percentage(dice[organ]) for dice in found)) for organ in ORGANS]
    rows.append(("**mean**", *(_percentage(_mean(dice.values())) for dice in found)))
    return table(("Dice, %", *VARIANTS), rows)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _percentage(value: float | None) -> str:
    return "none there" if value is None else f"{100 * value:.1f}"


def _caution(facts: Mapping[str, Any]) -> str:
    slices = facts["slices"]
    return (
        f"Measured on {len(slices['held_out'])} slices that were kept out of training "
        f"({', '.join(map(str, slices['held_out']))}). **This demonstrates memory, not "
        "segmentation**: there is one patient, each of these slices lies between two of the "
        f"{len(slices['training'])} training slices and looks much like them, and the labels are "
        "themselves the output of a network (TotalSegmentator), not ground truth."
    )
