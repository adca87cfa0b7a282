"""An image and what its annotators say, and datasets of such cases."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

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

    title: str
    spatial_dims: int
    in_channels: int
    classes: tuple[str, ...]
    patients: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Case: ...
