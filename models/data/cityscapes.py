"""Cityscapes from its folder, with classes that switch: real streets with a known truth."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from revgrad.models.data.case import Case
from revgrad.models.data.switches import STREET_PROBABILITIES, SwitchClasses
from revgrad.optional import optional_import

# Label id of the data set's files: the 19 classes that its benchmark scores, in its order.
SCORED = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
LABEL_IDS = {*range(34), 255}
STREETS = ("ignored", *SCORED.values())
# Kohl et al. 2018 keep these back of the training cities for validation.
VALIDATION_CITIES = ("darmstadt", "monchengladbach", "ulm")
SPLITS = ("train", "val", "test")


class CityscapesFolder:
    """Cityscapes as it is unpacked, each label map annotated by the 32 modes of its switches.

    The set-up of Kohl et al. 2018: their validation cities are taken out of the training part, the
    official validation part is the test part, images are 256x512. Label 0 holds every pixel that
    the benchmark ignores, and the 19 classes follow in its order. Networks learn to predict it like
    any other class (Kohl et al. leave such pixels out of the loss); metrics do not score label 0,
    and a prediction there is left out by ``samples.masked_fill(case.facts["ignored"], 0)``.

    Args:
        root: the folder that holds ``leftImg8bit`` and ``gtFine``.
        split: "train", "val" or "test".
        downscale: images are averaged over blocks of this size, of labels the middle is taken.
        probabilities: the classes that switch, and how often; those of Kohl et al. by default.

    Attributes:
        switches: the transform that makes the modes of a case.
        title, spatial_dims, in_channels, classes, patients: see `CaseDataset`. A patient is a city.

    Raises:
        FileNotFoundError: a folder or a label map is missing, or the split has no image.
        ValueError: a file is not what its name says, or an argument is not accepted.
        MissingExtraError: pillow is not installed; it comes with the extra `train`.
    """

    title = "Cityscapes: real images and labels; 5 classes that switch by known chance, 32 modes"
    spatial_dims = 2
    in_channels = 3

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str,
        *,
        downscale: int = 4,
        probabilities: Mapping[str, float] = STREET_PROBABILITIES,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
        if downscale < 1:
            raise ValueError(f"downscale must be at least 1, not {downscale}")
        self.root, self.split, self.downscale = Path(root), split, downscale
        self.switches = SwitchClasses.from_names(STREETS, probabilities)
        self.classes = (*STREETS, *(f"{name} 2" for name in probabilities))
        self._images = self._find_images()
        self.patients = tuple(path.parent.name for path in self._images)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Case:
        path = self._images[index]
        image, labels = self._read_image(path), self._read_labels(self._labels_of(path))
        if image.shape[1:] != labels.shape:
            raise ValueError(
                f"{path}: image {tuple(image.shape[1:])} and labels {tuple(labels.shape)} differ "
                f"in size"
            )
        return Case(
            image=image,
            annotators=self.switches.modes(labels),
            name=path.name.removesuffix("_leftImg8bit.png"),
            patient=path.parent.name,
            weights=self.switches.probabilities,
            facts={"switches": self.switches.pairs, "scene": labels, "ignored": labels == 0},
        )

    def _find_images(self) -> list[Path]:
        folder = self.root / "leftImg8bit" / ("val" if self.split == "test" else "train")
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; unpack leftImg8bit_trainvaltest")
        found = [
            path
            for path in sorted(folder.glob("*/*_leftImg8bit.png"))
            if self.split == "test"
            or (path.parent.name in VALIDATION_CITIES) == (self.split == "val")
        ]
        if not found:
            raise FileNotFoundError(f"{folder}: no CITY/*_leftImg8bit.png for split {self.split!r}")
        for path in found:
            if not self._labels_of(path).is_file():
                raise FileNotFoundError(f"{self._labels_of(path)}: no label map for {path.name}")
        return found

    def _labels_of(self, image: Path) -> Path:
        part, city = image.parts[-3:-1]
        name = image.name.replace("_leftImg8bit", "_gtFine_labelIds")
        return self.root / "gtFine" / part / city / name

    def _read_image(self, path: Path) -> Tensor:
        pixels = _read_png(path, "RGB", self.downscale)
        image = torch.from_numpy(pixels).permute(2, 0, 1).float()
        return image / 255 - 0.5

    def _read_labels(self, path: Path) -> Tensor:
        ids = _read_png(path, "L", 1)
        unknown = set(np.unique(ids).tolist()) - LABEL_IDS
        if unknown:
            raise ValueError(f"{path}: label ids must be 0 to 33 or 255, found {sorted(unknown)}")
        step = self.downscale
        middles = torch.from_numpy(ids)[step // 2 :: step, step // 2 :: step]
        return _label_table()[middles.long()]


def _label_table() -> Tensor:
    """The label of each label id, 0 for those that the benchmark ignores."""
    table = torch.zeros(256, dtype=torch.uint8)
    table[list(SCORED)] = torch.arange(1, len(STREETS), dtype=torch.uint8)
    return table


def _read_png(path: Path, mode: str, downscale: int) -> np.ndarray:
    """The pixels of a PNG of a mode, averaged over blocks."""
    pillow = optional_import("PIL.Image", "train")
    try:
        with pillow.open(path) as image:
            if image.mode != mode:
                raise ValueError(f"{path}: expected 8-bit {mode} pixels, not mode {image.mode}")
            if any(axis % downscale for axis in image.size):
                raise ValueError(f"{path}: {image.size} does not divide by downscale={downscale}")
            return np.array(image.reduce(downscale) if downscale > 1 else image)
    except (OSError, SyntaxError) as error:  # pillow raises the latter for a damaged chunk
        raise ValueError(f"{path}: cannot be read as an image: {error}") from error
