"""Say everything that is wrong with a folder of cases: `revgrad data check`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from revgrad.models.data.folder.case_folder import find_spatial_dims, read_case
from revgrad.models.data.folder.dataset_json import FolderError, read_dataset_json
from revgrad.models.data.folder.layout import find_cases
from revgrad.models.data.folder.nifti import read_shape
from revgrad.words import counted


def check_folder(root: str | os.PathLike[str]) -> list[str]:
    """Read every file of a folder in nnU-Net's layout and list all that is wrong.

    What `CaseFolder` would stop at one by one comes at once. Nothing is changed.

    Args:
        root: the folder with ``dataset.json``.

    Returns:
        One line for each problem, with the file that it is about; empty if all is well.

    Raises:
        MissingExtraError: nibabel is not installed.
    """
    folder = Path(root)
    if not folder.is_dir():
        return [f"{root}: no such folder"]
    try:
        description = read_dataset_json(folder)
    except FolderError as error:
        return list(error.problems)  # without it nothing else has a meaning
    parts, problems = find_cases(folder, description)
    for case in (*parts["Tr"], *parts["Ts"]):
        problems += read_case(case, len(description.classes))[1]
    return list(dict.fromkeys(problems))  # a missing file was missed twice


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `revgrad data check`."""
    parser.add_argument("folder", metavar="FOLDER", help="the folder with dataset.json")


def main(args: argparse.Namespace) -> int:
    """Print all problems, or what the folder holds; the exit status is 1 with problems."""
    problems = check_folder(args.folder)
    if problems:
        print("\n".join(problems))
        print(counted(len(problems), "problem"))
        return 1
    description = read_dataset_json(Path(args.folder))
    parts, _ = find_cases(Path(args.folder), description)
    cases = [*parts["Tr"], *parts["Ts"]]
    shapes = [read_shape(case.images[0]) for case in cases]
    counts = sorted({len(case.labels) for case in cases})
    patients = len({case.patient for case in cases})
    print(
        f"{counted(len(parts['Tr']), 'case')} in imagesTr, {len(parts['Ts'])} labelled in "
        f"imagesTs, of {counted(patients, 'patient')}\n"
        f"channels: {', '.join(description.channel_names)}; classes: "
        f"{', '.join(description.classes)}\n"
        f"annotators a case: {' or '.join(map(str, counts))}\n{_sizes(shapes)}\nno problems"
    )
    return 0


def _sizes(shapes: Sequence[tuple[int, ...]]) -> str:
    """What `CaseFolder` takes the images for, and between what its `size` may choose."""
    dims = find_spatial_dims(shapes)
    axes = ("slices", "rows", "columns")[-dims:]
    extremes = [[pick(axis) for axis in zip(*shapes, strict=True)][-dims:] for pick in (min, max)]
    small, large = (" x ".join(map(str, sizes)) for sizes in extremes)
    return (
        f"spatial_dims: {dims}, as {'all' if dims == 2 else 'not all'} images have a single slice\n"
        f"size ({', '.join(axes)}), each axis by itself: smallest {small}, largest {large}"
    )
