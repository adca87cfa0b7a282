"""Lung nodules with four radiologists' outlines each, under synthetic images.

The masks ship with the package (see ``samples/README.md``). The database's CT does not: images are
made by `revgrad.models.data.lidc_images`, so figures cannot be compared with published ones.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from revgrad.models.data.case import Case
from revgrad.models.data.lidc_images import lidc_image
from revgrad.models.data.splits import RATIOS, indices_of_part

SAMPLE = Path(__file__).parent / "samples" / "lidc_masks.npz"
MASK_SIZE = 128
# What a file of masks holds for each slice, but for the masks themselves: type and shape.
COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "annotations": ("int16", (4,)),
    "largest": ("bool", ()),
    "patient": ("int16", ()),
    "scan": ("int16", ()),
    "k": ("int16", ()),
    "row0": ("int16", ()),
    "col0": ("int16", ()),
    "spacing": ("float32", ()),
    "thickness": ("float32", ()),
    "malignancy": ("float16", ()),
    "texture": ("float16", ()),
}


class LIDC:
    """LIDC masks, synthetic images: a `CaseDataset` of 897 nodules, four annotators each.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``; None for all.
        seed: of the split. Images do not depend on it: a nodule always looks the same.
        ratios: of the patients in train, val and test.
        slices: ``"largest"``, one slice of each nodule, or ``"all"``, every slice in which at least
            one of the four outlined it: 6,701.
        size: rows and columns of the crop around the nodule, 16 to 128. A small crop cuts off
            nodules at its edge: 64 holds all but a few.
        keep: whether cases that were made are kept, at 8 bytes a pixel. An image takes about two
            milliseconds to make, as long as a small network takes to train on it.
        path: another file of the same layout (`revgrad.models.data.build_lidc` writes one).

    Cases have images ``(1, size, size)`` in [-0.5, 0.5], which is -1000 to 400 HU, and annotators
    ``(4, size, size)`` uint8, 0 or 1; who did not outline the slice is empty there. The order of
    the annotators says nothing: a place is not one person. `facts` hold ``spacing`` and
    ``thickness`` in millimetres, the mean ratings ``malignancy`` and ``texture`` (1 to 5), and
    ``annotations``, four numbers in the database.

    Raises:
        ValueError: an argument is not among these, or the file is damaged.

    Source: LIDC-IDRI (Armato et al., Medical Physics 38, 2011; doi 10.7937/K9/TCIA.2015.LO9QL9SX),
    CC BY 3.0.
    """

    title = "LIDC masks, synthetic images"
    spatial_dims = 2
    in_channels = 1
    classes = ("background", "nodule")

    def __init__(
        self,
        split: str | None = None,
        *,
        seed: int = 0,
        ratios: Sequence[float] = RATIOS,
        slices: str = "largest",
        size: int = MASK_SIZE,
        keep: bool = False,
        path: str | os.PathLike[str] = SAMPLE,
    ) -> None:
        if slices not in ("largest", "all"):
            raise ValueError(f"slices must be 'largest' or 'all', not {slices!r}")
        if not 16 <= size <= MASK_SIZE:
            raise ValueError(f"size must be 16 to {MASK_SIZE}, the masks' own, not {size}")
        self.size = size
        if size < MASK_SIZE:
            self.title = f"{LIDC.title}, cut to {size} x {size}"
        self._kept: dict[int, Case] | None = {} if keep else None
        table = read_lidc_masks(path)
        rows = table["largest"].nonzero()[0] if slices == "largest" else np.arange(len(table["k"]))
        names = [f"LIDC-IDRI-{number:04d}" for number in table["patient"][rows].tolist()]
        part = indices_of_part(split, names, ratios, seed=seed)
        self.patients = tuple(names[index] for index in part)
        # The row in the file seeds the image, whichever part and selection the case is in.
        self._rows = rows[part]
        self._table = {name: column[self._rows] for name, column in table.items()}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Case:
        if self._kept is None:
            return self._make(index)
        if index not in self._kept:
            self._kept[index] = self._make(index)
        case = self._kept[index]
        # Copies, or a change made in place would stay in what is kept.
        return replace(case, image=case.image.clone(), annotators=case.annotators.clone())

    def _make(self, index: int) -> Case:
        row = {name: column[index] for name, column in self._table.items()}
        masks = torch.from_numpy(np.unpackbits(row["masks"], axis=-1))
        generator = torch.Generator().manual_seed(int(self._rows[index]))
        image = lidc_image(
            masks,
            spacing=float(row["spacing"]),
            texture=float(row["texture"]),
            generator=generator,
        )
        annotations = tuple(row["annotations"].tolist())
        return Case(
            image=self._crop(image),
            annotators=self._crop(masks),
            name=f"scan {row['scan']} annotation {annotations[0]} slice {row['k']}",
            patient=self.patients[index],
            facts=_facts(row) | {"annotations": annotations},
        )

    def _crop(self, planes: Tensor) -> Tensor:
        start = (MASK_SIZE - self.size) // 2
        area = slice(start, start + self.size)
        return planes[..., area, area].contiguous()


def read_lidc_masks(path: str | os.PathLike[str] = SAMPLE) -> dict[str, np.ndarray]:
    """Read a file of LIDC masks: ``masks`` (slices, 4, 128, 16), packed bits, and ``COLUMNS``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or not laid out like the sample.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; if it should ship with revgrad, reinstall")
    layout = {"masks": ("uint8", (4, MASK_SIZE, MASK_SIZE // 8)), **COLUMNS}
    try:
        with np.load(path) as archive:
            table = {name: archive[name] for name in layout}
    except KeyError as error:
        raise ValueError(f"{path}: an array is missing: {error.args[0]}") from error
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: cannot be read as an .npz archive: {error}") from error
    for name, (dtype, shape) in layout.items():
        expected = (len(table["masks"]), *shape)
        if table[name].dtype != dtype or table[name].shape != expected:
            raise ValueError(
                f"{path}: {name} should be {dtype} {expected}, it is {table[name].dtype} "
                f"{table[name].shape}"
            )
    return table


def _facts(row: dict[str, Any]) -> dict[str, Any]:
    spacing = float(row["spacing"])
    ratings = {name: float(row[name]) for name in ("thickness", "malignancy", "texture")}
    return {"spacing": (spacing, spacing), **ratings}
