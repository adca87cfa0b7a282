"""Cases from a folder of NIfTI files, as volumes or slices."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from revgrad.models.data.case import Case
from revgrad.models.data.folder.dataset_json import FolderError, read_dataset_json
from revgrad.models.data.folder.intensities import (
    Fingerprint,
    measure_fingerprint,
    normalise,
    scheme_of,
)
from revgrad.models.data.folder.layout import CaseFiles, find_cases
from revgrad.models.data.folder.nifti import (
    Volume,
    grid_difference,
    read_image,
    read_labels,
    read_shape,
    short_name,
)
from revgrad.models.data.splits import PARTS, RATIOS, split_by_patient
from revgrad.words import counted


@dataclass(frozen=True)
class Arrays:
    """The content of a case's files.

    Attributes:
        image: ``(channels, slices, rows, columns)``, float32.
        annotators: ``(annotators, slices, rows, columns)``.
        affine: of the files, see `Volume`.
        spacing: millimetres between slices, rows and columns.
    """

    image: NDArray[np.float32]
    annotators: NDArray[Any]
    affine: NDArray[np.float64]
    spacing: tuple[float, ...]


def read_case(files: CaseFiles, classes: int) -> tuple[Arrays | None, list[str]]:
    """Read a case, or say everything that is wrong with it.

    All files must be readable and on one grid (shape and affine), images finite, labels integers
    from 0 to ``classes - 1``.
    """
    problems: list[str] = []
    volumes: dict[Path, Volume] = {}
    for file in (*files.images, *files.labels):
        try:
            volume = read_image(file) if file in files.images else read_labels(file, classes)
        except ValueError as error:
            problems.append(str(error))
            continue
        volumes[file] = volume
        first, reference = next(iter(volumes.items()))
        if difference := grid_difference(volume, reference):
            problems.append(f"{short_name(file)}: {difference} of {short_name(first)}")
    if problems:
        return None, problems
    image = np.stack([volumes[file].voxels for file in files.images])
    annotators = np.stack([volumes[file].voxels for file in files.labels])
    return Arrays(image.astype(np.float32), annotators, reference.affine, reference.spacing), []


class _Item(NamedTuple):
    """What one index means: a case, and in 2D one slice of it."""

    case: int
    slice: int | None


class CaseFolder:
    """Cases from a folder in nnU-Net's layout, with one label file for each annotator.

    The layout, ``dataset.json`` and what is checked: ``docs/your_data.md``. File names are checked
    at once, contents when a case is read; `check_folder` reads everything. Nothing is resampled or
    flipped. Images are ``(channels, slices, rows, columns)``, the file's axes in reverse order.

    Args:
        root: the folder with ``dataset.json``.
        split: ``"train"``, ``"val"`` or ``"test"``; None for all cases. With ``labelsTs`` the test
            part is ``imagesTs``, and ``imagesTr`` is divided into the other two; without, it is
            divided into three. No patient is in two parts.
        seed: of the division.
        ratios: of patients in train, val and test.
        spatial_dims: 3 for volumes, 2 for their slices, of which each is a case; None finds it out
            from the headers: 2 if all images of the folder have a single slice, else 3.
        axis: along which slices are taken: 0, 1 or 2 of (slices, rows, columns).
        min_foreground: take only slices in which at least this many pixels are foreground to some
            annotator. If it is not 0, all label files are read at the start.
        size: crop or pad each image to this, around its middle; padding is the channel's minimum
            and background. None leaves the size as it is.
        normalisation: ``"nnunet"`` goes by the channel's name: for ``CT`` clip at the percentiles
            0.5 and 99.5 of the training cases' foreground, then z-score by its mean and deviation;
            ``noNorm``, ``rescale_to_0_1``, ``rgb_to_0_1``; z-score by image for all others.
            ``"zscore"`` or ``"none"`` holds for all channels. A slice is normalised with its
            volume.
        fingerprint: what CT channels are normalised by, each channel a `Fingerprint` or its four
            numbers; None measures it when the first image is read, over the training cases, of
            which all are read.
        cache: how many volumes to keep in memory; None keeps all.

    Raises:
        FolderError: File names or ``dataset.json`` are wrong; lists all problems. When a case is
            read: its contents are wrong.
        ValueError: An argument is wrong.

    Source:
        Isensee et al. 2021, nnU-Net: layout and normalisation. Foreground is what any annotator
        calls so; annotators and patients in ``dataset.json`` are this package's own.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str | None = None,
        *,
        seed: int = 0,
        ratios: Sequence[float] = RATIOS,
        spatial_dims: int | None = None,
        axis: int = 0,
        min_foreground: int = 0,
        size: int | Sequence[int] | None = None,
        normalisation: str = "nnunet",
        fingerprint: Sequence[Fingerprint | Sequence[float]] | None = None,
        cache: int | None = 1,
    ) -> None:
        if spatial_dims not in (2, 3, None) or axis not in (0, 1, 2):
            raise ValueError(
                f"spatial_dims must be 2 or 3 and axis 0, 1 or 2, not {spatial_dims} and {axis}"
            )
        self.root = Path(root)
        self._description = read_dataset_json(self.root)
        names = self._description.channel_names
        self.classes = self._description.classes
        self.in_channels = len(names)
        self._axis = axis
        self._schemes = [scheme_of(name, normalisation) for name in names]
        if fingerprint is not None and len(fingerprint) != len(names):
            raise ValueError(f"fingerprint must have {len(names)} channels")
        self._fingerprint = None if fingerprint is None else tuple(map(_channel, fingerprint))
        parts = self._find_cases()
        # Of the whole folder, that all parts have the same.
        shapes = (self._shape(files) for files in parts["Tr"] + parts["Ts"])
        self.spatial_dims = spatial_dims or find_spatial_dims(shapes, axis)
        self._size = _sizes(size, self.spatial_dims)
        self._cases, self._training = _divide(parts, split, ratios, seed)
        self._cached: OrderedDict[int, Arrays] = OrderedDict()
        self._cache = len(self._cases) if cache is None else max(cache, 1)
        self._items = self._list_items(min_foreground)
        self.patients = tuple(self._cases[item.case].patient for item in self._items)
        self.title = (
            f"{self.root.resolve().name}, {split or 'all'}: {counted(len(self._cases), 'case')} of "
            f"{counted(len(set(self.patients)), 'patient')}, the user's own files"
        )

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Case:
        item = self._items[index]
        files, arrays = self._cases[item.case], self._load(item.case)
        name, facts = files.name, {"affine": arrays.affine.tolist(), "spacing": arrays.spacing}
        image: NDArray[Any] = arrays.image
        annotators = arrays.annotators
        if item.slice is not None:
            name = f"{name}/{item.slice:03d}"
            image = np.take(image, item.slice, self._axis + 1)
            annotators = np.take(annotators, item.slice, self._axis + 1)
            kept = [mm for axis, mm in enumerate(arrays.spacing) if axis != self._axis]
            facts |= {"slice": item.slice, "spacing": tuple(kept)}
        if self._size is not None:
            low = image.min(axis=tuple(range(1, image.ndim)), keepdims=True)
            image, annotators = fit(image, self._size, low), fit(annotators, self._size)
        # Copies: what is kept in memory must not change with what a user does to a case.
        tensors = [torch.from_numpy(np.array(array, order="C")) for array in (image, annotators)]
        return Case(tensors[0], tensors[1], name, files.patient, facts=facts)

    @property
    def needs_fingerprint(self) -> bool:
        """Whether some channel is normalised by it."""
        return "ct" in self._schemes

    @property
    def fingerprint(self) -> tuple[Fingerprint, ...]:
        """What CT channels are normalised by; measured at the first use, unless it was given."""
        if self._fingerprint is None:
            read = (self._read(files) for files in self._training)
            pairs = ((arrays.image, arrays.annotators) for arrays in read)
            self._fingerprint = measure_fingerprint(pairs, self.in_channels)
        return self._fingerprint

    def files(self) -> list[dict[str, Any]]:
        """Paths of each case, as MONAI's datasets take them: ``image``, ``label`` (lists)."""
        return [
            {
                "image": [str(file) for file in case.images],
                "label": [str(file) for file in case.labels],
                "case": case.name,
                "patient": case.patient,
            }
            for case in self._cases
        ]

    def _find_cases(self) -> dict[str, list[CaseFiles]]:
        parts, problems = find_cases(self.root, self._description)
        if problems:
            raise FolderError(self.root, problems)
        return parts

    def _shape(self, files: CaseFiles) -> tuple[int, ...]:
        """Slices, rows and columns of a case, by a header."""
        try:
            return read_shape(files.images[0])
        except ValueError as error:
            raise FolderError(self.root, [str(error)]) from error

    def _read(self, files: CaseFiles) -> Arrays:
        arrays, problems = read_case(files, len(self.classes))
        if arrays is None:
            raise FolderError(self.root, problems)
        return arrays

    def _load(self, case: int) -> Arrays:
        """A case's arrays with the image normalised, from memory if they are there."""
        if case in self._cached:
            self._cached.move_to_end(case)
            return self._cached[case]
        arrays = self._read(self._cases[case])
        fingerprint = self.fingerprint if self.needs_fingerprint else ()
        arrays = replace(arrays, image=normalise(arrays.image, self._schemes, fingerprint))
        self._cached[case] = arrays
        while len(self._cached) > self._cache:
            self._cached.popitem(last=False)
        return arrays

    def _list_items(self, min_foreground: int) -> list[_Item]:
        """All cases, or in 2D all slices with enough foreground."""
        if self.spatial_dims == 3:
            return [_Item(case, None) for case in range(len(self._cases))]
        items = []
        for case, files in enumerate(self._cases):
            if min_foreground > 0:
                chosen = np.flatnonzero(self._foreground(files) >= min_foreground).tolist()
            else:
                chosen = list(range(self._shape(files)[self._axis]))
            items += [_Item(case, k) for k in chosen]
        if not items:
            raise ValueError(
                f"{self.root}: no slice of {len(self._cases)} cases has {min_foreground} "
                "foreground pixels: lower min_foreground"
            )
        return items

    def _foreground(self, files: CaseFiles) -> NDArray[np.int64]:
        """In each slice the number of pixels that some annotator calls foreground."""
        try:
            masks = [read_labels(file, len(self.classes)).voxels for file in files.labels]
        except ValueError as error:
            raise FolderError(self.root, [str(error)]) from error
        if len({mask.shape for mask in masks}) > 1:
            self._read(files)  # which says what differs from what
        others = tuple(axis for axis in range(3) if axis != self._axis)
        return np.count_nonzero(np.any(np.stack(masks) > 0, axis=0), axis=others)


def find_spatial_dims(shapes: Iterable[tuple[int, ...]], axis: int = 0) -> int:
    """2 if all volumes have a single slice along the axis, else 3, known at the first of them."""
    return 2 if all(shape[axis] == 1 for shape in shapes) else 3


def _divide(
    parts: Mapping[str, list[CaseFiles]], split: str | None, ratios: Sequence[float], seed: int
) -> tuple[list[CaseFiles], list[CaseFiles]]:
    """The cases of the split, and those of the training part."""
    own, held_out = parts["Tr"], parts["Ts"]
    if split is None:
        return own + held_out, own
    if split not in PARTS or len(ratios) != len(PARTS):
        raise ValueError(
            f"split must be one of {PARTS} or None, with three ratios, not {split!r} with "
            f"{tuple(ratios)}"
        )
    shares = ratios[:2] if held_out else ratios
    divided = split_by_patient([case.patient for case in own], shares, seed=seed)
    by_name = {part: [own[i] for i in chosen] for part, chosen in zip(PARTS, divided, strict=False)}
    if held_out:
        by_name["test"] = held_out
    return by_name[split], by_name["train"]


def fit(array: NDArray[Any], size: Sequence[int], fill: Any = 0) -> NDArray[Any]:
    """Crop or pad the last axes around their middle.

    Args:
        array: ``(n, *spatial)``.
        size: of the spatial axes.
        fill: what padding consists of; broadcasts against the array.
    """
    result = np.empty((array.shape[0], *size), array.dtype)
    result[...] = fill
    source, target = [slice(None)], [slice(None)]
    for have, want in zip(array.shape[1:], size, strict=True):
        kept = min(have, want)
        source.append(slice((have - kept) // 2, (have - kept) // 2 + kept))
        target.append(slice((want - kept) // 2, (want - kept) // 2 + kept))
    result[tuple(target)] = array[tuple(source)]
    return result


def _channel(given: Fingerprint | Sequence[float]) -> Fingerprint:
    """The fingerprint of a channel, as a file of settings may hold it: its four numbers."""
    if isinstance(given, Fingerprint):
        return given
    if len(given) != 4 or not all(isinstance(number, int | float) for number in given):
        raise ValueError(
            f"the fingerprint of a channel is low, high, mean and std, four numbers, not {given!r}"
        )
    return Fingerprint(*map(float, given))


def _sizes(size: int | Sequence[int] | None, spatial_dims: int) -> tuple[int, ...] | None:
    """One size for each spatial axis."""
    if size is None:
        return None
    sizes = (size,) * spatial_dims if isinstance(size, int) else tuple(size)
    if len(sizes) != spatial_dims or not all(isinstance(n, int) and n > 0 for n in sizes):
        raise ValueError(
            f"size must be {spatial_dims} positive integers (spatial_dims={spatial_dims}), or one, "
            f"not {size!r}"
        )
    return sizes
