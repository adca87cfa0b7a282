"""Train a network that draws segmentations, and show samples beside the annotators' outlines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from revgrad.machine import facts as machine_facts
from revgrad.models.data.case import Case, CaseDataset
from revgrad.models.demo.report import table
from revgrad.models.figures import save, sheet
from revgrad.models.metrics import generalized_energy_distance
from revgrad.models.progress import Progress
from revgrad.models.segmenter import Segmenter
from revgrad.optional import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class AmbiguousSettings:
    """The configuration of a run; all of it goes into the report."""

    steps: int = 400
    batch: int = 12
    learning_rate: float = 2e-3
    samples: int = 16  # of an image, for the energy distance
    cases: int = 20  # held out, that are scored
    shown: int = 4  # of these, on the sheet
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class AmbiguousOutcome:
    """What a run found out.

    `ged` is the squared energy distance, averaged over the held-out cases: "before training",
    "after training", and by each baseline's name.
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


class Excerpt:
    """So many cases of a dataset, evenly spread over it."""

    def __init__(self, dataset: CaseDataset, count: int) -> None:
        count = min(count, len(dataset))
        self._dataset = dataset
        self._indices = [(2 * i + 1) * len(dataset) // (2 * count) for i in range(count)]
        self.title, self.classes = dataset.title, dataset.classes
        self.spatial_dims, self.in_channels = dataset.spatial_dims, dataset.in_channels
        self.patients = tuple(dataset.patients[i] for i in self._indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Case:
        return self._dataset[self._indices[index]]


def run(
    network: Segmenter,
    training: CaseDataset,
    held_out: CaseDataset,
    settings: AmbiguousSettings,
    baselines: Callable[[CaseDataset], Mapping[str, float]],
) -> AmbiguousOutcome:
    """Train the network, and score its samples on held-out cases before and after.

    Args:
        network: is moved to the settings' device and trained in place.
        training, held_out: cases of the same kind that share no patient.
        baselines: gives the energy distance of predictions that learn nothing, over the same cases.

    Raises:
        ValueError: a dataset is empty, or both have cases of a patient.
    """
    if not len(training) or not len(held_out):
        raise ValueError(f"{training.title}: there must be cases to train with and to hold out")
    if shared := set(training.patients) & set(held_out.patients):
        raise ValueError(f"patients in training and held out: {sorted(shared)[:5]}")
    network.to(settings.device)
    scored = Excerpt(held_out, settings.cases)
    before = _score(network, scored, settings)
    losses = _train(network, training, settings)
    after = _score(network, scored, settings)
    excerpt = Excerpt(scored, settings.shown)
    shown = [excerpt[index] for index in range(len(excerpt))]
    return AmbiguousOutcome(
        settings=settings,
        network=type(network).__name__,
        parameters=sum(p.numel() for p in network.parameters()),
        title=held_out.title,
        classes=tuple(held_out.classes),
        losses=losses,
        ged={"before training": before, "after training": after, **baselines(scored)},
        shown=shown,
        probabilities=[_draw(network, case, settings).softmax(1) for case in shown],
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


def _train(network: Segmenter, training: CaseDataset, settings: AmbiguousSettings) -> list[float]:
    """Take all steps; returns each one's loss."""
    optimizer = torch.optim.Adam(network.parameters(), settings.learning_rate)
    progress = Progress(settings.steps)
    losses: list[float] = []
    network.train()
    with _seeded(settings):
        for images, masks in _batches(training, settings):
            optimizer.zero_grad()
            terms = network.loss(images, masks)
            terms.total.backward()
            optimizer.step()
            losses.append(terms.total.item())
            progress(len(losses), f"loss {losses[-1]:.1f}, KL {terms.kl.sum().item():.1f}")
    return losses


def _batches(dataset: CaseDataset, settings: AmbiguousSettings) -> Iterator[tuple[Tensor, Tensor]]:
    """Cases at random, and of each a random annotator: all that a step needs of disagreement."""
    generator = torch.Generator().manual_seed(settings.seed)
    for _ in range(settings.steps):
        drawn = torch.randint(len(dataset), (settings.batch,), generator=generator).tolist()
        cases = [dataset[index] for index in drawn]
        images = torch.stack([case.image for case in cases])
        masks = torch.stack([_one_annotator(case, generator) for case in cases])
        yield images.to(settings.device), masks.to(settings.device, torch.int64)


def _one_annotator(case: Case, generator: torch.Generator) -> Tensor:
    weights = torch.ones(len(case.annotators)) if case.weights is None else case.weights
    return case.annotators[int(torch.multinomial(weights.double(), 1, generator=generator))]


def _score(network: Segmenter, dataset: CaseDataset, settings: AmbiguousSettings) -> float:
    """Squared energy distance of samples from the annotators, mean over the cases."""
    found = []
    for index in range(len(dataset)):
        case = dataset[index]
        distance = generalized_energy_distance(
            _draw(network, case, settings).argmax(1),
            case.annotators,
            num_classes=len(dataset.classes),
            spatial_dims=dataset.spatial_dims,
            annotator_weights=case.weights,
        )
        found.append(distance.item())
    return fmean(found)


@torch.no_grad()
def _draw(network: Segmenter, case: Case, settings: AmbiguousSettings) -> Tensor:
    """Logits ``(samples, C, *spatial)`` of a case, on the CPU; the same each time."""
    network.eval()
    with _seeded(settings):
        return network.sample(case.image[None].to(settings.device), settings.samples)[0].cpu()


@contextmanager
def _seeded(settings: AmbiguousSettings) -> Iterator[None]:
    """What is random inside is given by the seed, and nothing changes outside."""
    device = torch.device(settings.device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        yield
