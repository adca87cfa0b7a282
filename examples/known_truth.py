"""Compare trained networks with the known truth of the scenes that they were trained on.

Draws samples of each test scene and prints how far their distribution is from the true one
(docs/known_truth.md), with the time that training took. The first run is what the last figure
compares the others with: a U-Net.

    revgrad train --config examples/recipes/scenes-unet.toml --output runs/unet
    revgrad train --config examples/recipes/scenes-phiseg.toml --output runs/phiseg
    python examples/known_truth.py runs/unet runs/phiseg --output known-truth
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from revgrad.machine import facts
from revgrad.markdown import configuration, table
from revgrad.models import Segmenter
from revgrad.models.data import CaseDataset
from revgrad.models.metrics import KnownTruthReport, known_truth_report
from revgrad.models.training.checkpoint import CheckpointError, load_dataset, load_segmenter
from revgrad.models.training.loop import CONFIG, LOG


def main(argv: Sequence[str] | None = None) -> int:
    """Print the page, and write it and its figures as JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--samples", type=int, default=16, help="of each scene (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--output", type=Path, help="for OUTPUT.md and OUTPUT.json")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        reports = {run: report(run, args.split, args.samples, args.seed) for run in args.runs}
    except (CheckpointError, ValueError) as error:
        parser.error(str(error))
    settings = {k: getattr(args, k) for k in ("split", "samples", "seed", "threads")}
    text = page(reports, settings)
    print(text)
    if args.output:
        args.output.with_suffix(".md").write_text(text, encoding="utf-8")
        rows = {run.name: figures(run, reports[run]) for run in args.runs}
        record = {"settings": settings, "machine": facts("cpu"), "runs": rows}
        args.output.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    return 0


def report(run: Path, split: str, samples: int, seed: int) -> KnownTruthReport:
    """The report of the last checkpoint of a run."""
    network, scenes = load_segmenter(run, "latest"), load_dataset(run, split)
    torch.manual_seed(seed)
    drawn = draw(network, scenes, samples)
    return known_truth_report(drawn, iter(scenes), num_classes=network.out_channels)


def draw(network: Segmenter, scenes: CaseDataset, count: int) -> Iterator[Tensor]:
    """Label maps ``(count, height, width)`` of each scene."""
    for index in range(len(scenes)):
        with torch.inference_mode():
            yield network.sample(scenes[index].image[None], count)[0].argmax(1)


def page(reports: dict[Path, KnownTruthReport], settings: dict[str, Any]) -> str:
    """Every report in full, a table of what they come to, and the machine."""
    first = next(iter(reports.values()))
    rows = []
    for run, found in reports.items():
        span = first.ged.mean() - found.limits.perfect.mean()
        share = float((found.ged.mean() - found.limits.perfect.mean()) / span)
        whole = f"{float(found.whole.min()):.3f}"
        numbers = (found.normalized_ged, share, found.excess_variation)
        rows.append((run.name, *(f"{n:.3f}" for n in numbers), whole, minutes(run)))
    head = (
        "run",
        "of the way to the best single mode",
        f"to {next(iter(reports)).name}",
        "excess total variation",
        "samples that flip as one, worst class",
        "training",
    )
    details = [f"{run.name}:\n\n```text\n{found}\n```\n" for run, found in reports.items()]
    parts = ["# Known truth\n", table(head, rows) + "\n", *details]
    return "\n".join([*parts, configuration(settings, facts("cpu"))])


def figures(run: Path, found: KnownTruthReport) -> dict[str, Any]:
    """What a run scored, how it was configured, and how long it took, as JSON takes it."""
    configured = json.loads((run / CONFIG).read_text())
    del configured["output"]  # a path of this machine
    return {
        "configuration": configured,
        "training": minutes(run),
        "normalized_ged": found.normalized_ged,
        "ged": float(found.ged.mean()),
        "perfect": float(found.limits.perfect.mean()),
        "single_mode": float(found.limits.single_mode.mean()),
        "total_variation": found.total_variation,
        "true_variation": found.true_variation,
        **{name: getattr(found, name).tolist() for name in SHARES},
    }


SHARES = ("frequencies", "probabilities", "flipped", "as_one", "whole", "recalled")


def minutes(run: Path) -> str:
    """Steps of a run, and the time that they took by its log."""
    lines = [json.loads(line) for line in (run / LOG).read_text().splitlines()]
    batch = json.loads((run / CONFIG).read_text())["batch_size"]
    seconds = sum(batch / line["images_per_second"] for line in lines)
    return f"{len(lines)} steps, {seconds / 60:.1f} min"


if __name__ == "__main__":
    raise SystemExit(main())
