"""The LIDC crops that the PyTorch version of the Probabilistic U-Net made common."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from revgrad.models.data.array_pickle import load_arrays
from revgrad.models.data.case import Case
from revgrad.models.data.splits import RATIOS, indices_of_part

# Images come in [0, 1]; PHiSeg moves them to [-0.5, 0.5].
OFFSET = 0.5
# Who resamples an image may leave its range a little.
ROUNDING = 1e-3


class LIDCPickle:
    """Crops around lung nodules with the masks of four radiologists, from ``data_lidc.pickle``.

    The file is a dictionary: name -> ``image`` ``(128, 128)`` in [0, 1], ``masks``, a list of four
    ``(128, 128)`` of 0 and 1, some of which may be empty, and ``series_uid``. It has 15,096 slices
    of 875 series. Other sizes and numbers of masks are read too. Images are given out as
    image - 0.5. Nothing in the file is run. The split's slices are kept in memory, 128 KiB each;
    while the file is read, all of it.

    The split goes by series, which stands for the patient: the file has no other name for one.

    Args:
        path: the pickle.
        split: ``"train"``, ``"val"`` or ``"test"``; None for all.
        seed: of the split.
        ratios: of series in train, val and test.

    Raises:
        FileNotFoundError: There is no such file.
        ForbiddenPickleError: The file asks for code, which has not run.
        ValueError: The file is damaged, or an entry, which is named, is not like the above.

    Source:
        LIDC-IDRI, Armato et al. 2011; crops as in stefanknegt/Probabilistic-Unet-Pytorch.
    """

    spatial_dims = 2
    in_channels = 1
    classes = ("background", "nodule")

    def __init__(
        self,
        path: str | os.PathLike[str],
        split: str | None = None,
        *,
        seed: int = 0,
        ratios: Sequence[float] = RATIOS,
    ) -> None:
        content = load_arrays(path)
        if not isinstance(content, dict) or not content:
            raise ValueError(f"{path}: expected a dictionary of slices, found {_kind(content)}")
        names = list(content)
        series = [_series(path, name, content[name]) for name in names]
        chosen = indices_of_part(split, series, ratios, seed=seed)
        self.patients = tuple(series[i] for i in chosen)
        self._names = [str(names[i]) for i in chosen]
        # Taken out one by one, so that the file's own arrays, twice as large, can go.
        self._arrays = [_convert(path, names[i], content.pop(names[i])) for i in chosen]
        self.title = (
            f"LIDC crops from {os.path.basename(path)}, {split or 'all'}: {len(self)} slices of "
            f"{len(set(self.patients))} series, real images and annotators"
        )

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Case:
        image, masks = self._arrays[index]
        image_, masks_ = torch.from_numpy(image - OFFSET), torch.from_numpy(masks.copy())
        return Case(image_[None], masks_, self._names[index], self.patients[index])


def _series(path: Any, name: Any, entry: Any) -> str:
    """The series of an entry, after a look at its keys."""
    if not isinstance(entry, dict) or not {"image", "masks", "series_uid"} <= set(entry):
        found = sorted(map(str, entry)) if isinstance(entry, dict) else _kind(entry)
        raise ValueError(
            f"{path}: {name!r} must be a dictionary with image, masks and series_uid, found {found}"
        )
    return str(entry["series_uid"])


def _convert(path: Any, name: Any, entry: dict[str, Any]) -> tuple[Any, Any]:
    """Image as float32 and masks ``(annotators, *spatial)`` as uint8, of an entry that is right."""
    image, masks = entry["image"], entry["masks"]
    if not isinstance(image, np.ndarray) or image.ndim != 2:
        raise ValueError(
            f"{path}: {name!r}: image must be an array of two axes, not {_kind(image)}"
        )
    if not ((image >= -ROUNDING) & (image <= 1 + ROUNDING)).all():  # false for NaN
        raise ValueError(f"{path}: {name!r}: image must be in [0, 1]")
    shapes = [np.shape(mask) for mask in masks] if isinstance(masks, list | np.ndarray) else []
    if not shapes or any(shape != image.shape for shape in shapes):
        raise ValueError(
            f"{path}: {name!r}: masks must be arrays of the image's shape {image.shape}, at least "
            f"one, not {shapes or _kind(masks)}"
        )
    stacked = np.stack(list(masks))
    if not np.isin(stacked, (0, 1)).all():
        raise ValueError(f"{path}: {name!r}: masks must be 0 and 1")
    return image.astype(np.float32), stacked.astype(np.uint8)


def _kind(value: Any) -> str:
    """What something is, for a complaint."""
    if isinstance(value, np.ndarray):
        return f"an array {value.shape}"
    return f"a {type(value).__name__}"
