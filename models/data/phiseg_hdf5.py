"""The HDF5 file that PHiSeg's code makes of LIDC crops."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from revgrad.models.data.case import Case
from revgrad.models.data.splits import PARTS
from revgrad.optional import optional_import

KEYS = ("images", "labels", "uids")


class PHiSegHDF5:
    """Slices with the masks of all annotators, from PHiSeg's ``data_lidc.hdf5``.

    The file has groups ``train``, ``val`` and ``test``, each with ``images`` ``(N, H, W)`` floats
    in [-0.5, 0.5], ``labels`` ``(N, H, W, annotators)`` integers, and ``uids`` ``(N,)``, a number
    for each series. The split is the file's own. Slices are read from the file when asked for.

    PHiSeg's uids are Python's hashes of the series' names, which another run makes anew: they
    tell series apart within a file, not between files.

    Args:
        path: the file.
        split: ``"train"``, ``"val"`` or ``"test"``; None for all.
        classes: name of each label, the background first.

    Raises:
        MissingExtraError: h5py is not installed.
        FileNotFoundError: There is no such file.
        ValueError: The file is no HDF5, a key is missing, shapes do not fit, a series is in two
            parts; when a slice is read: it has NaN or a label without a class.

    Source:
        Baumgartner et al. 2019, PHiSeg; baumgach/PHiSeg-code, data/lidc_data_loader.py.
    """

    spatial_dims = 2
    in_channels = 1

    def __init__(
        self,
        path: str | os.PathLike[str],
        split: str | None = None,
        *,
        classes: Sequence[str] = ("background", "nodule"),
    ) -> None:
        if split is not None and split not in PARTS:
            raise ValueError(f"split must be one of {PARTS} or None, not {split!r}")
        self.classes = tuple(classes)
        self._path = os.fspath(path)
        chosen = PARTS if split is None else (split,)
        uids = self._check()
        self._items = [(part, row) for part in chosen for row in range(len(uids[part]))]
        self.patients = tuple(uids[part][row] for part, row in self._items)
        self.title = (
            f"{os.path.basename(path)}, {split or 'all'}: {len(self)} slices of "
            f"{len(set(self.patients))} series, from the user's HDF5 file in PHiSeg's layout"
        )

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Case:
        part, row = self._items[index]
        name = f"{part}/{row}"
        # Opened for each slice: an open handle can't go to the processes of a data loader.
        with self._open() as file:
            image = np.asarray(file[part]["images"][row], np.float32)
            labels = np.asarray(file[part]["labels"][row])
        if not np.isfinite(image).all():
            raise ValueError(f"{self._path}: {part}/images[{row}] has NaN or infinite values")
        if not np.isin(labels, range(len(self.classes))).all():
            raise ValueError(
                f"{self._path}: {part}/labels[{row}] has {np.unique(labels).tolist()}; "
                f"{len(self.classes)} classes are declared"
            )
        annotators = np.ascontiguousarray(labels.transpose(2, 0, 1).astype(np.uint8))
        return Case(
            torch.from_numpy(image)[None],
            torch.from_numpy(annotators),
            name,
            self.patients[index],
        )

    def _open(self) -> Any:
        h5py = optional_import("h5py", "data")
        if not os.path.isfile(self._path):
            raise FileNotFoundError(f"{self._path}: no such file")
        try:
            return h5py.File(self._path, "r")
        except OSError as error:
            raise ValueError(f"{self._path}: cannot be read as HDF5: {error}") from error

    def _check(self) -> dict[str, list[str]]:
        """The series of each slice, by part, of a file whose layout is right."""
        with self._open() as file:
            _check_layout(self._path, file)
            series = {part: [str(uid) for uid in file[part]["uids"][:].tolist()] for part in PARTS}
        for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
            if shared := set(series[one]) & set(series[other]):
                raise ValueError(
                    f"{self._path}: {len(shared)} series are in {one} and in {other}, such as "
                    f"{min(shared)}"
                )
        return series


def _check_layout(path: str, file: Any) -> None:
    """Refuse a file without the keys and shapes that PHiSeg's has."""
    wanted = [f"{part}/{key}" for part in PARTS for key in KEYS]
    if missing := [key for key in wanted if key not in file]:
        found: list[str] = []
        file.visit(found.append)
        raise ValueError(f"{path}: lacks {', '.join(missing)}; it has {', '.join(found[:20])}")
    for part in PARTS:
        images, labels, uids = (file[part][key].shape for key in KEYS)
        if len(images) != 3 or labels[:-1] != images or uids != images[:1]:
            raise ValueError(
                f"{path}: {part} has images {images}, labels {labels} and uids {uids}, not "
                "(N, H, W), (N, H, W, annotators) and (N,)"
            )
