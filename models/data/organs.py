"""One CT volume with organ labels, shipped with the package (see ``samples/README.md``)."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SAMPLE = Path(__file__).parent / "samples" / "organs_ct.npz"

# Structure numbers of TotalSegmentator's task "total", merged into what can be seen at 3 mm.
ORGANS: dict[str, tuple[int, ...]] = {
    "liver": (5,),
    "spleen": (1,),
    "kidneys": (2, 3),
    "stomach and bowel": (6, 18, 19, 20),
    "lungs": (10, 11, 12, 13, 14),
    "aorta and vena cava": (52, 63),
    "spine and ribs": (*range(26, 51), 79, *range(92, 118)),  # with cord, sternum, cartilages
    "back muscles": (86, 87),
}


@dataclass(frozen=True)
class OrganCT:
    """A CT volume and its labels, axial slices first.

    Slices run from feet to head; the first row is anterior, the first column the patient's right.
    """

    hounsfield: Tensor  # (slices, rows, columns) int16
    structures: Tensor  # the same shape, uint8: structure numbers, 0 = none
    spacing: tuple[float, float, float]  # millimetres between slices, rows, columns

    def organs(self) -> Tensor:
        """Labels ``(slices, rows, columns)`` int64: 0 background, i the i-th of ``ORGANS``."""
        merged = torch.zeros(256, dtype=torch.int64)
        for label, numbers in enumerate(ORGANS.values(), start=1):
            merged[list(numbers)] = label
        return merged[self.structures.long()]


def load_organs(path: str | os.PathLike[str] = SAMPLE) -> OrganCT:
    """Read the sample volume, or another file laid out like it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or not laid out like the sample.
    """
    arrays = _read_arrays(Path(path))
    ct, labels, spacing = (arrays[name] for name in ("ct", "labels", "spacing"))
    if ct.dtype != np.int16 or labels.dtype != np.uint8:
        raise ValueError(f"{path}: ct is {ct.dtype} and labels {labels.dtype}, not int16 and uint8")
    if ct.ndim != 3 or ct.shape != labels.shape or spacing.shape != (3,):
        raise ValueError(
            f"{path}: ct {ct.shape}, labels {labels.shape} and spacing {spacing.shape} "
            "should be twice the same three dimensions, and (3,)"
        )
    slices, rows, columns = (float(mm) for mm in spacing)
    return OrganCT(torch.from_numpy(ct), torch.from_numpy(labels), (slices, rows, columns))


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays that make a volume, by name."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; if it should ship with revgrad, reinstall")
    try:
        with np.load(path) as archive:
            return {name: archive[name] for name in ("ct", "labels", "spacing")}
    except KeyError as error:
        raise ValueError(f"{path}: an array is missing: {error.args[0]}") from error
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: cannot be read as an .npz archive: {error}") from error
