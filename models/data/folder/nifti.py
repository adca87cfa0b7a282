"""Read NIfTI volumes, and say where two of them differ in space."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from revgrad.optional import optional_import

# Writers round affines to float32. A thousandth of a millimetre moves no voxel.
TOLERANCE = 1e-3
# What to do about a file of more axes: an image's, and a label's.
CHANNELS = "each channel is a file of its own"
LABELS = (
    "one number a voxel, that of its class: of a one-hot stack take the argmax over its classes; "
    "each annotator is a file of its own"
)


@dataclass(frozen=True)
class Volume:
    """One NIfTI file.

    Attributes:
        voxels: ``(slices, rows, columns)``: the file's axes in reverse order, as SimpleITK and
            nnU-Net have them. No axis is flipped.
        affine: ``(4, 4)``, of the file's own order of axes, to millimetres.
    """

    voxels: NDArray[np.generic]
    affine: NDArray[np.float64]

    @property
    def spacing(self) -> tuple[float, ...]:
        """Millimetres between slices, rows and columns."""
        return spacing_of(self.affine)


def spacing_of(affine: NDArray[np.float64]) -> tuple[float, ...]:
    """Millimetres between slices, rows and columns."""
    return tuple(float(mm) for mm in np.linalg.norm(affine[:3, :3], axis=0)[::-1])


def read_nifti(path: Path, hint: str = CHANNELS) -> Volume:
    """Read a file of two axes (one slice) or three.

    Args:
        path: the file.
        hint: what to do about more axes.

    Raises:
        MissingExtraError: nibabel is not installed.
        ValueError: The file is missing, damaged, or has another number of axes.
    """
    with _readable(path) as image:
        _check_form(path, image, hint)
        voxels = np.asanyarray(image.dataobj)
    if voxels.ndim == 2:
        voxels = voxels[..., None]
    return Volume(voxels.transpose(), np.asarray(image.affine, np.float64))


def read_shape(path: Path) -> tuple[int, ...]:
    """Read from a file's header how many slices, rows and columns it has.

    Raises:
        ValueError: As `read_nifti`, though damage behind the header is not seen.
    """
    with _readable(path) as image:
        _check_form(path, image, CHANNELS)
        return (*image.shape, 1)[2::-1]


@contextmanager
def _readable(path: Path) -> Iterator[Any]:
    """Open a file, and name it in whatever fails while it is read."""
    nibabel = optional_import("nibabel", "data")
    failures = (nibabel.filebasedimages.ImageFileError, OSError, EOFError, zlib.error)
    try:
        yield nibabel.load(path)
    except FileNotFoundError:
        raise ValueError(f"{short_name(path)}: no such file") from None
    except failures as error:
        raise ValueError(f"{short_name(path)}: cannot be read as NIfTI: {error}") from error


def _check_form(path: Path, image: Any, hint: str) -> None:
    """Refuse colours, and axes beyond three."""
    if image.get_data_dtype().fields is not None:
        raise ValueError(f"{short_name(path)}: has colours, expected one number a voxel")
    if len(image.shape) not in (2, 3):
        raise ValueError(
            f"{short_name(path)}: has {len(image.shape)} axes {image.shape}, expected 3 ({hint})"
        )


def read_image(path: Path) -> Volume:
    """Read a channel of an image as float32.

    Raises:
        ValueError: As `read_nifti`, or a voxel is not finite.
    """
    volume = read_nifti(path)
    voxels = volume.voxels.astype(np.float32)
    bad = voxels.size - int(np.isfinite(voxels).sum())
    if bad:
        raise ValueError(f"{short_name(path)}: {bad} of {voxels.size} voxels are NaN or infinite")
    return Volume(voxels, volume.affine)


def read_labels(path: Path, classes: int) -> Volume:
    """Read a mask as uint8, or int64 if there are more than 256 classes.

    Raises:
        ValueError: As `read_nifti`, or a voxel is no integer from 0 to ``classes - 1``.
    """
    volume = read_nifti(path, LABELS)
    found = np.unique(volume.voxels)
    odd = [value for value in found.tolist() if value not in range(classes)]
    if odd:
        shown = ", ".join(f"{value:g}" for value in odd[:5]) + (", ..." if len(odd) > 5 else "")
        raise ValueError(
            f"{short_name(path)}: has labels that dataset.json does not declare: {shown}; declared "
            f"are 0 to {classes - 1}"
        )
    dtype = np.uint8 if classes <= 256 else np.int64
    return Volume(volume.voxels.astype(dtype), volume.affine)


def grid_difference(volume: Volume, reference: Volume) -> str | None:
    """Say in what a volume's grid differs from another's, or None."""
    if volume.voxels.shape != reference.voxels.shape:
        shapes = [item.voxels.shape[::-1] for item in (volume, reference)]
        return f"shape {shapes[0]} differs from {shapes[1]}"
    if np.allclose(volume.affine, reference.affine, rtol=0, atol=TOLERANCE):
        return None
    parts = {
        "spacing": [np.array(item.spacing[::-1]) for item in (volume, reference)],
        "origin": [item.affine[:3, 3] for item in (volume, reference)],
    }
    for name, (own, other) in parts.items():
        if not np.allclose(own, other, rtol=0, atol=TOLERANCE):
            return f"{name} {_millimetres(own)} mm differs from {_millimetres(other)} mm"
    return "the directions of its axes differ"


def _millimetres(values: NDArray[np.float64]) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values.tolist()) + ")"


def short_name(path: Path) -> str:
    """A file's name with its folder's, as problems call it."""
    return f"{path.parent.name}/{path.name}"
