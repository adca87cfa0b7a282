"""The networks that are measured, each with Adam, as the paper trains them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from revgrad.benchmarks.revphiseg.settings import QUICK_CHANNELS
from revgrad.benchmarks.sequence.settings import Settings
from revgrad.benchmarks.sequence.workload import memory_format
from revgrad.models.phiseg import PRESETS, PHiSeg
from revgrad.optim import step_in_backward

BASE = "phiseg"


@dataclass(frozen=True)
class Variant:
    """One way of training.

    Attributes:
        preset: Name of the network, see `revgrad.models.phiseg.PRESETS`.
        about: What it does, in a few words.
        options: Further arguments of the network.
        steps: Whether Adam steps inside the backward pass.
    """

    preset: str
    about: str
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: bool = False


VARIANTS: Mapping[str, Variant] = {
    BASE: Variant("phiseg", "PHiSeg of torch's own layers, by ordinary autograd"),
    "revphiseg-paper": Variant(
        "revphiseg",
        "RevPHiSeg as the paper has it: reversible blocks, all that lies between them stored",
        {"recompute_glue": False},
    ),
    "revphiseg": Variant("revphiseg", "the same network, with what lies between recomputed"),
    "revphiseg-iso": Variant(
        "revphiseg-iso", "revphiseg with two blocks for a unit: about as many weights as PHiSeg"
    ),
    "revphiseg-stepping": Variant(
        "revphiseg", "revphiseg with Adam inside the backward pass", steps=True
    ),
}
DEFAULT = tuple(name for name, variant in VARIANTS.items() if not variant.steps)


class TrainingStep:
    """A training step of a variant: loss, backward pass, Adam.

    Args:
        variant: Name of the variant.
        settings: Its images, and where it runs.
        classes: Number of classes.
        quick: Whether the network is tiny.
    """

    def __init__(self, variant: str, settings: Settings, classes: int, quick: bool) -> None:
        torch.manual_seed(0)
        chosen, device = VARIANTS[variant], settings.device
        options = dict(chosen.options)
        if quick:
            options |= {"channels": QUICK_CHANNELS, "latent_levels": 2}
        self.module: PHiSeg = PRESETS[chosen.preset](2, settings.channels, classes, **options)
        layout = memory_format(settings)
        # torch's stubs do not know `memory_format` of modules.
        self.module.to(device).to(memory_format=layout)  # type: ignore[call-overload]
        self.image = torch.randn(settings.shape).to(device, memory_format=layout)
        shape = settings.batch, settings.size, settings.size
        self.masks = torch.randint(classes, shape).to(device)
        # The paper's Adam; a step must not change what the next one costs, so its rate is tiny.
        self.optimizer = torch.optim.Adam(self.module.parameters(), 1e-9, weight_decay=1e-5)
        if chosen.steps:
            step_in_backward(self.optimizer)

    def loss(self, batch: int | None = None) -> torch.Tensor:
        """The forward pass, of the first images if a batch is given."""
        return self.module.loss(self.image[:batch], self.masks[:batch]).total

    def __call__(self, batch: int | None = None) -> None:
        self.optimizer.zero_grad()
        self.loss(batch).backward()
        self.optimizer.step()
