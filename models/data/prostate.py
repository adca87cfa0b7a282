"""A generated set like the prostate MR of the PHiSeg papers: six annotators, three classes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from revgrad.models.data.case import Case
from revgrad.models.data.prostate_volumes import (
    SLICE_THICKNESS,
    number_of_slices,
    prostate_volume,
)
from revgrad.models.data.slices import prepare_slices
from revgrad.models.data.splits import RATIOS, indices_of_part


class ProstateLike:
    """Generated MR-like prostate slices, images and annotators: a `CaseDataset`.

    Nothing is real: see `revgrad.models.data.prostate_volumes`. Volumes go through the papers'
    pipeline, `prepare_slices`, and every slice is a case. Six annotators, each with a bias of its
    own in all patients, so that here a place in the order *is* one annotator.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``; None for all.
        seed: of the split. Images do not depend on it.
        ratios: of the patients in train, val and test.
        patients: how many to generate, with 13 to 17 slices each.
        size: rows and columns of the slices.
        spacing: of rows and columns in millimetres.

    Cases have images ``(1, size, size)``, the z-score of their volume, and annotators ``(6, size,
    size)`` uint8, empty where the gland does not reach. `facts` hold ``spacing`` and ``thickness``
    in millimetres, and ``slice``. A patient is generated when a slice is first asked for, and
    kept: 5 to 6 MB at 192x192.
    """

    title = "generated MR-like prostate, images and annotators synthetic"
    spatial_dims = 2
    in_channels = 1
    classes = ("background", "transition zone", "peripheral zone")

    def __init__(
        self,
        split: str | None = None,
        *,
        seed: int = 0,
        ratios: Sequence[float] = RATIOS,
        patients: int = 40,
        size: int = 192,
        spacing: float = 0.6,
    ) -> None:
        if patients < 1 or size < 1 or spacing <= 0:
            raise ValueError(
                "patients, size and spacing must be positive, not "
                f"patients={patients}, size={size}, spacing={spacing}"
            )
        self.size, self.spacing = size, spacing
        places = [
            (number, k) for number in range(patients) for k in range(number_of_slices(number))
        ]
        names = [f"prostate-like {number:03d}" for number, _ in places]
        part = indices_of_part(split, names, ratios, seed=seed)
        self._places = [places[index] for index in part]
        self.patients = tuple(names[index] for index in part)
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Case:
        number, k = self._places[index]
        image, annotators = self._volume(number)
        return Case(
            # Copies, or a change made in place would stay in what is kept.
            image=image[k][None].clone(),
            annotators=annotators[:, k].clone(),
            name=f"{self.patients[index]} slice {k}",
            patient=self.patients[index],
            facts={
                "spacing": (self.spacing, self.spacing),
                "thickness": SLICE_THICKNESS,
                "slice": k,
            },
        )

    def _volume(self, number: int) -> tuple[Tensor, Tensor]:
        """The prepared slices of a patient, and their annotators."""
        if number not in self._kept:
            volume = prostate_volume(number)
            self._kept[number] = prepare_slices(
                volume.image,
                volume.annotators,
                volume.spacing[1:],
                new_spacing=self.spacing,
                size=self.size,
            )
        return self._kept[number]
