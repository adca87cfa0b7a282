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

    Raises:
        TypeError: Image, annotators or weights are no tensors, the image not of floating point, or
            the annotators no integers.
        ValueError: Their shapes do not fit together.
    """

    image: Tensor
    annotators: Tensor
    name: str
    patient: str
    weights: Tensor | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    # Here, as every case passes, those of a user's own dataset too, before any training. Values are
    # not looked at: that would cost a pass over the arrays each time.
    def __post_init__(self) -> None:
        self._check_types()
        image, annotators = tuple(self.image.shape), tuple(self.annotators.shape)
        if len(image) not in (3, 4) or not annotators or annotators[1:] != image[1:]:
            raise ValueError(
                f"case {self.name!r}: image and annotators must be (channels, *spatial) and "
                f"(annotators, *spatial) in 2D or 3D, not {image} and {annotators}"
            )
        if annotators[0] < 1:
            raise ValueError(f"case {self.name!r}: has no annotator")
        if self.weights is not None and tuple(self.weights.shape) != annotators[:1]:
            raise ValueError(
                f"case {self.name!r}: weights must be {annotators[:1]}, one for each annotator, "
                f"not {tuple(self.weights.shape)}"
            )

    def _check_types(self) -> None:
        parts = {"image": self.image, "annotators": self.annotators}
        if self.weights is not None:
            parts["weights"] = self.weights
        for part, value in parts.items():
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"case {self.name!r}: {part} must be a torch.Tensor, not "
                    f"{type(value).__name__}; torch.from_numpy makes one of an array"
                )
        if not self.image.is_floating_point():
            raise TypeError(
                f"case {self.name!r}: image must be float32, normalised as a network takes it, not "
                f"{self.image.dtype}"
            )
        dtype = self.annotators.dtype
        if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
            raise TypeError(
                f"case {self.name!r}: annotators must be integer labels, such as uint8 or int64, "
                f"not {dtype}"
            )


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
