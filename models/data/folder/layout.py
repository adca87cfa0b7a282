"""Which files of a folder in nnU-Net's layout make which case."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

from revgrad.models.data.folder.dataset_json import DatasetJson
from revgrad.models.data.folder.nifti import short_name

FOLDERS = {"Tr": ("imagesTr", "labelsTr"), "Ts": ("imagesTs", "labelsTs")}


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case.

    Attributes:
        name: the case.
        patient: whose it is.
        images: one file a channel.
        labels: one file an annotator.
    """

    name: str
    patient: str
    images: tuple[Path, ...]
    labels: tuple[Path, ...]


def find_cases(
    root: Path, description: DatasetJson
) -> tuple[dict[str, list[CaseFiles]], list[str]]:
    """List the cases of both parts, sorted by name, and whatever is wrong with the files' names.

    No file is opened. ``imagesTs`` counts only beside a folder ``labelsTs``: without labels it is
    for prediction.

    Args:
        root: the folder with ``dataset.json``.
        description: what that says.

    Returns:
        The cases of ``"Tr"`` and ``"Ts"``, and one line for each problem.
    """
    parts: dict[str, list[CaseFiles]] = {"Tr": [], "Ts": []}
    problems: list[str] = []
    if found := _undeclared_annotators(root, description):
        problems.append(_to_declare(found))
        # As if it were declared, for what else may be wrong.
        suffixes = tuple(sorted({suffix for some in found.values() for suffix in some}))
        description = replace(description, suffixes=suffixes, exceptions=found)
    for part in parts:
        if part == "Tr" or (root / FOLDERS[part][1]).is_dir():
            parts[part] = _cases_of_part(root, description, part, problems)
    problems += _unknown_names(root, description)
    shared = {case.patient for case in parts["Tr"]} & {case.patient for case in parts["Ts"]}
    problems += [f"patient {name!r} is in imagesTr and in imagesTs" for name in sorted(shared)]
    return parts, problems


def _undeclared_annotators(root: Path, description: DatasetJson) -> dict[str, tuple[str, ...]]:
    """Case -> suffixes of its labels, where none are declared and no label goes without one."""
    found: dict[str, set[str]] = {}
    if description.suffixes:
        return {}
    ending = description.file_ending
    for images, labels in FOLDERS.values():
        names = set(_case_names(root / images, ending))
        for file in _files(root / labels, ending):
            stem = file.name.removesuffix(ending)
            if stem in names:
                return {}
            starts = [stem[: match.start()] for match in re.finditer("_", stem)]
            # The longest, as a case's own name may go on with what is another's.
            if name := next((start for start in reversed(starts) if start in names), None):
                found.setdefault(name, set()).add(stem.removeprefix(f"{name}_"))
    return {name: tuple(sorted(some)) for name, some in found.items()}


def _to_declare(found: dict[str, tuple[str, ...]]) -> str:
    """The key that declares the annotators of each case."""
    suffixes = sorted({suffix for some in found.values() for suffix in some})
    odd = {name: some for name, some in sorted(found.items()) if list(some) != suffixes}
    value = {"suffixes": suffixes, "cases": odd} if odd else suffixes
    return (
        "dataset.json: declares no annotators, while labels are named CASE_"
        f'{suffixes[0]} and so on: write "annotators": {json.dumps(value)}'
    )


def _cases_of_part(
    root: Path, description: DatasetJson, part: str, problems: list[str]
) -> list[CaseFiles]:
    """The cases of one part; what is wrong is added to the problems."""
    folders = [root / name for name in FOLDERS[part]]
    if absent := [folder for folder in folders if not folder.is_dir()]:
        problems += [f"{folder.name}: no such folder" for folder in absent]
        return []
    ending = description.file_ending
    names = _case_names(folders[0], ending)
    if not names:
        problems.append(
            f"{folders[0].name}: no image named CASE_0000{ending}, as file_ending in dataset.json "
            "has it"
        )
    count = description.num_training
    if part == "Tr" and count not in (None, len(names)):
        problems.append(f"dataset.json: numTraining is {count}, imagesTr has {len(names)} cases")
    declared = [_files_of(name, folders[0], folders[1], description) for name in names]
    expected = {file for case in declared for file in (*case.images, *case.labels)}
    present = {file for folder in folders for file in _files(folder, ending)}
    problems += [f"{short_name(file)}: no such file" for file in sorted(expected - present)]
    problems += [
        f"{short_name(file)}: {_stranger(file, folders[0], ending)}"
        for file in sorted(present - expected)
    ]
    return declared


def _stranger(file: Path, images: Path, ending: str) -> str:
    """Why a file belongs to no case."""
    if file.parent == images and not _pattern(ending).fullmatch(file.name):
        # A case without it is none, so that its labels would be all that is complained about.
        return f"an image is named CASE_0000{ending}, with the number of its channel at the end"
    return "is no channel or annotator's label that dataset.json declares for a case with an image"


def _files_of(name: str, images: Path, labels: Path, description: DatasetJson) -> CaseFiles:
    """The files that a case should have."""
    ending = description.file_ending
    channels = range(len(description.channel_names))
    ends = [f"_{suffix}" if suffix else "" for suffix in description.annotators_of(name)]
    return CaseFiles(
        name,
        description.patient_of(name),
        tuple(images / f"{name}_{i:04d}{ending}" for i in channels),
        tuple(labels / f"{name}{end}{ending}" for end in ends),
    )


def _case_names(images: Path, ending: str) -> list[str]:
    """Names of the cases of which at least one channel is there, sorted."""
    matches = (_pattern(ending).fullmatch(file.name) for file in _files(images, ending))
    return sorted({match[1] for match in matches if match})


def _pattern(ending: str) -> re.Pattern[str]:
    """What an image is named: its case and the number of its channel."""
    return re.compile(rf"(.+)_\d{{4}}{re.escape(ending)}")


def _files(folder: Path, ending: str) -> list[Path]:
    """Files with the ending; hidden ones, which some systems leave behind, don't count."""
    if not folder.is_dir():
        return []
    return [
        file
        for file in folder.iterdir()
        if file.name.endswith(ending) and not file.name.startswith(".")
    ]


def _unknown_names(root: Path, description: DatasetJson) -> list[str]:
    """Cases that dataset.json speaks of and that have no image."""
    known = {
        name
        for images, _ in FOLDERS.values()
        for name in _case_names(root / images, description.file_ending)
    }
    tables = {"annotators": description.exceptions, "patients": description.patients}
    return [
        f"dataset.json: {key} names the case {name!r}, which has no image"
        for key, table in tables.items()
        for name in sorted(set(table) - known)
    ]
