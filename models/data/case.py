"""An image and what its annotators say, and datasets of such cases."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One image with the masks of all of its annotators.

    Attributes:
        image: ``(channels, *spatial)``, float32, normalised as a network takes it.
        annotators: ``(annotators, *spatial)``, integer labels (uint8 or int64). Their number may
            differ between cases.
        name: tells the case from others in the dataset.
        patient: cases of one patient share it; splits and intervals go by patient.
        weights: ``(annotators,)`` if the annotators are the whole of a known distribution and these
            are its probabilities; None if they are draws.
        facts: what else is known of the case, such as ``spacing`` in millimetres.
    """

    image: Tensor
    annotators: Tensor
    name: str
    patient: str
    weights: Tensor | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class CaseDataset(Protocol):
    """A map-style dataset of cases, as `torch.utils.data` takes it.

    Attributes:
        title: one line that says what the data are and what of them is real; printed with every
            figure.
        spatial_dims: 2 or 3.
        in_channels: channels of the images.
        classes: name of each label, the background first.
        patients: of each case, in order: known without loading it.
    """

    # Properties, since they are only read: a class attribute of a narrower type will do.
    @property
    def title(self) -> str: ...

    @property
    def spatial_dims(self) -> int: ...

    @property
    def in_channels(self) -> int: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def patients(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Case: ...


def draw_annotators(case: Case, n: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw annotators of a case with replacement, by their weights if they have any.

    Returns:
        ``(n, *spatial)`` of the annotators' type.
    """
    weights = torch.ones(len(case.annotators)) if case.weights is None else case.weights
    drawn = torch.multinomial(weights.double().cpu(), n, replacement=True, generator=generator)
    return case.annotators[drawn.to(case.annotators.device)]


def without_ignored(case: Case, maps: Tensor) -> Tensor:
    """Label maps ``(..., *spatial)`` with label 0 where the case says that nobody knows.

    So does the truth there (``facts["ignored"]``, see `CityscapesFolder`), and metrics do not
    score label 0.
    """
    ignored = case.facts.get("ignored")
    return maps if ignored is None else maps.masked_fill(ignored.to(maps.device), 0)
