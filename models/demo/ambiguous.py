"""Train a network that draws segmentations, and show samples beside the annotators' outlines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from revgrad.machine import facts as machine_facts
from revgrad.markdown import table
from revgrad.models.data.case import Case, CaseDataset
from revgrad.models.figures import save, sheet
from revgrad.models.phiseg import RevPHiSeg
from revgrad.models.progress import Progress
from revgrad.models.segmenter import Segmenter
from revgrad.models.training.batches import Batches, seed_noise, spread
from revgrad.models.training.references import references
from revgrad.models.training.scores import Predict, ged_name, predictor, scored
from revgrad.models.training.seeding import Purpose
from revgrad.optional import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class AmbiguousSettings:
    """The configuration of a run; all of it goes into the report."""

    steps: int = 600
    batch: int = 12
    learning_rate: float = 3e-3
    channels: tuple[int, ...] = (16, 32, 64)
    latent_levels: int = 2
    size: int = 32  # of an image
    samples: int = 16  # of an image, for the energy distance
    cases: int = 60  # held out, that are scored
    shown: int = 4  # of these, on the sheet
    seed: int = 0
    device: str = "cpu"


# To see in seconds that everything works; it learns nothing.
QUICK = AmbiguousSettings(
    steps=2, batch=2, channels=(4, 8), latent_levels=1, samples=4, cases=2, shown=1
)


@dataclass(frozen=True)
class AmbiguousOutcome:
    """What a run found out.

    `ged` is the squared energy distance, averaged over the held-out cases: "before training",
    "after training", and by each prediction's name that learns nothing.
    """

    settings: AmbiguousSettings
    network: str
    parameters: int
    title: str
    classes: tuple[str, ...]
    losses: list[float]
    ged: dict[str, float]
    shown: list[Case]
    probabilities: list[Tensor]  # of the shown cases, (samples, C, *spatial)


def small_network(data: CaseDataset, settings: AmbiguousSettings) -> RevPHiSeg:
    """A RevPHiSeg with one unit a row, whose batch norm follows within the few steps."""
    with torch.random.fork_rng(devices=[]):
        seed_noise(settings.seed, Purpose.WEIGHTS)
        return RevPHiSeg(
            data.spatial_dims,
            data.in_channels,
            len(data.classes),
            settings.channels,
            settings.latent_levels,
            depth=1,
            latent_depth=1,
            decoder_depth=1,
            norm=("batch", {"momentum": 0.1}),
        )


def run(
    network: Segmenter,
    training: CaseDataset,
    held_out: CaseDataset,
    settings: AmbiguousSettings,
) -> AmbiguousOutcome:
    """Train the network, and score its samples on held-out cases before and after.

    Args:
        network: is moved to the settings' device and trained in place.
        training, held_out: cases of the same kind that share no patient.

    Raises:
        ValueError: a dataset is empty, or both have cases of a patient.
    """
    if not len(training) or not len(held_out):
        raise ValueError(f"{training.title}: there must be cases to train with and to hold out")
    if shared := set(training.patients) & set(held_out.patients):
        raise ValueError(f"patients in training and held out: {sorted(shared)[:5]}")
    network.to(settings.device)
    indices = spread(len(held_out), settings.cases)
    device = torch.device(settings.device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        draw = predictor(network, settings.samples, settings.seed)
        ged = {"before training": _ged(draw, held_out, indices, settings)}
        losses = _train(network, training, settings)
        network.eval()
        ged["after training"] = _ged(draw, held_out, indices, settings)
        others = references(held_out, settings.samples, settings.seed)
        ged |= {name: _ged(other, held_out, indices, settings) for name, other in others.items()}
        places = [indices[place] for place in spread(len(indices), settings.shown)]
        shown = [held_out[index] for index in places]
        drawn = [draw(case, index) for case, index in zip(shown, places, strict=True)]
    return AmbiguousOutcome(
        settings=settings,
        network=type(network).__name__,
        parameters=sum(p.numel() for p in network.parameters()),
        title=held_out.title,
        classes=tuple(held_out.classes),
        losses=losses,
        ged=ged,
        shown=shown,
        probabilities=drawn,
    )


def write(outcome: AmbiguousOutcome, folder: Path) -> None:
    """Print the scores; write ``samples.json`` and, with matplotlib, ``samples.png``."""
    facts = {
        "machine": machine_facts(outcome.settings.device),
        "configuration": asdict(outcome.settings),
        "network": outcome.network,
        "parameters": outcome.parameters,
        "data": outcome.title,
        "ged": outcome.ged,
        "losses": outcome.losses,
    }
    (folder / "samples.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(f"\n{_introduction(outcome)}\n\n{_scores(outcome)}")
    try:
        print(f"\nSamples beside the annotators: {save(_sheet(outcome), folder / 'samples.png')}")
    except MissingExtraError as error:
        print(f"\nNo sheet of samples: {error}")


def _introduction(outcome: AmbiguousOutcome) -> str:
    settings = outcome.settings
    return (
        f"{outcome.title}: {outcome.network}, {outcome.parameters:,} parameters, {settings.steps} "
        f"steps of {settings.batch} images. Squared generalized energy distance (0 is best) of "
        f"{settings.samples} samples, mean over up to {settings.cases} held-out cases. Far too "
        "short a training to tell networks apart."
    )


def _scores(outcome: AmbiguousOutcome) -> str:
    rows = [(name, f"{distance:.3f}") for name, distance in outcome.ged.items()]
    return table(("", "GED, squared"), rows)


def _sheet(outcome: AmbiguousOutcome) -> Figure:
    settings = outcome.settings
    return sheet(
        outcome.shown,
        outcome.probabilities,
        classes=outcome.classes,
        caption=f"{outcome.title}. {outcome.network} after {settings.steps} steps, held-out cases",
        margin=8,
    )


def _train(
    network: Segmenter, training: CaseDataset | Sequence[Case], settings: AmbiguousSettings
) -> list[float]:
    """Take all steps; returns each one's loss."""
    # Made once: an image is synthesised each time it is asked for.
    cases = [training[index] for index in range(len(training))]
    batches = Batches(cases, settings.batch, settings.seed)
    optimizer = torch.optim.Adam(network.parameters(), settings.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=settings.steps
    )
    progress = Progress(settings.steps)
    losses: list[float] = []
    network.train()
    for step in range(settings.steps):
        images, masks = (part.to(settings.device) for part in batches(step))
        seed_noise(settings.seed, Purpose.NOISE, step)
        optimizer.zero_grad()
        terms = network.loss(images, masks)
        terms.total.backward()
        optimizer.step()
        schedule.step()
        losses.append(terms.total.item())
        progress(len(losses), f"loss {losses[-1]:.1f}, KL {terms.kl.sum().item():.1f}")
    return losses


def _ged(
    predict: Predict, dataset: CaseDataset, indices: Sequence[int], settings: AmbiguousSettings
) -> float:
    """Squared energy distance of samples from the annotators, mean over the cases."""
    name = ged_name(settings.samples)
    found = scored(predict, dataset, indices, settings.seed)
    return fmean(scores.values[name] for _, scores, _ in found)
