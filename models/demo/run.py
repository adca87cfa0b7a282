"""A whole run of the demo: what is trained, and everything that is found out about it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from revgrad.memory import MemoryReport
from revgrad.models.data.organs import ORGANS, load_organs
from revgrad.models.demo.compare import gradient_errors, organ_dice, peak_memory, predict
from revgrad.models.demo.settings import Settings
from revgrad.models.demo.slices import WINDOWS, Slices, batches, split
from revgrad.models.demo.train import NUDGED, VARIANTS, Trainee, nudge, repeatable, train
from revgrad.models.iunet import iUNet
from revgrad.models.progress import Progress


@dataclass(frozen=True)
class Outcome:
    """What a run found out.

    Dictionaries go by "plain" and "reversible"; ``losses`` and ``predictions`` have "nudged", too.
    """

    settings: Settings
    parameters: int
    training: Slices
    held_out: Slices
    memory: dict[str, MemoryReport]
    seconds: dict[str, list[float]]
    losses: dict[str, list[float]]
    gradient_errors: dict[str, dict[str, float]]  # "at the start" and "after training", by variant
    predictions: dict[str, Tensor]  # (slices, H, W) int64
    dice: dict[str, dict[str, float]]  # by variant and organ

    @property
    def memory_ratio(self) -> float:
        """Reversible peak over plain peak."""
        return self.memory["reversible"].peak / self.memory["plain"].peak

    @property
    def time_ratio(self) -> float:
        """Reversible over plain time: the median over the steps, which were taken in turn."""
        pairs = zip(self.seconds["reversible"], self.seconds["plain"], strict=True)
        return median(reversible / plain for reversible, plain in pairs)

    def loss_distances(self, name: str) -> list[float]:
        """How far a training's loss is from that of plain training, at each step."""
        pairs = zip(self.losses[name], self.losses["plain"], strict=True)
        return [abs(loss - plain) for loss, plain in pairs]

    def agreement(self, name: str) -> float:
        """Share of the held-out pixels that get the same label as after plain training."""
        same = self.predictions[name] == self.predictions["plain"]
        return same.double().mean().item()


def run(settings: Settings) -> Outcome:
    """Train the network in both ways, from the same start on the same batches, and compare."""
    device = torch.device(settings.device)
    training, held_out = split(load_organs(), settings.held_out_every)
    images, labels = (part.to(device) for part in next(_batches(training, settings)))

    with repeatable():
        network = _network(settings).to(device)
        print("measuring the memory of a step ...", flush=True)
        memory = peak_memory(network, images, labels)
        at_start = gradient_errors(network, images, labels)
        trainees = _trainees(network, settings)
        _train(trainees, training, settings)
        predictions = {
            name: predict(trainee.network, held_out, device) for name, trainee in trainees.items()
        }
        after = gradient_errors(trainees["plain"].network, images, labels)
    return Outcome(
        settings=settings,
        parameters=sum(p.numel() for p in network.parameters()),
        training=training,
        held_out=held_out,
        memory=memory,
        seconds={variant: trainees[variant].seconds for variant in VARIANTS},
        losses={name: trainee.losses for name, trainee in trainees.items()},
        gradient_errors={"at the start": at_start, "after training": after},
        predictions=predictions,
        dice={variant: organ_dice(predictions[variant], held_out) for variant in VARIANTS},
    )


def _trainees(network: iUNet, settings: Settings) -> dict[str, Trainee]:
    """Copies of the network, one to train in each way and one nudged."""
    trainees = {}
    for name in (*VARIANTS, NUDGED):
        pupil = copy.deepcopy(network)
        pupil.save_memory = VARIANTS.get(name, False)
        if name == NUDGED:
            nudge(pupil)
        trainees[name] = Trainee(pupil, settings)
    return trainees


def _train(trainees: dict[str, Trainee], slices: Slices, settings: Settings) -> None:
    """Train all of them and tell how far they are."""
    progress = Progress(settings.steps)

    def show(step: int) -> None:
        losses = ", ".join(f"{name} {trainees[name].losses[-1]:.4f}" for name in VARIANTS)
        progress(step, f"loss: {losses}")

    train(trainees, _batches(slices, settings), torch.device(settings.device), show)


def _network(settings: Settings) -> iUNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return iUNet(
            spatial_dims=2,
            in_channels=len(WINDOWS),
            out_channels=1 + len(ORGANS),
            channels=settings.channels,
            depths=settings.depths,
            block=_unit,
            padding_mode="replicate",  # slices end in air, and so it goes on
        )


def _unit(in_channels: int, out_channels: int, spatial_dims: int) -> nn.Module:
    """What a coupling adds to a stream.

    With a norm over several channels, since one over each takes away what tells lung from gas.
    """
    assert spatial_dims == 2
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.GroupNorm(out_channels // 4, out_channels),
        nn.LeakyReLU(0.01),
    )


def _batches(slices: Slices, settings: Settings) -> Iterator[tuple[Tensor, Tensor]]:
    return batches(slices, settings.steps, settings.batch, settings.crop, settings.seed)
