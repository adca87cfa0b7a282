"""The file that describes a folder of cases: nnU-Net's ``dataset.json``, with annotators."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

FILE_ENDINGS = (".nii.gz", ".nii")

T = TypeVar("T")
Annotators = tuple[tuple[str, ...], dict[str, tuple[str, ...]]]


class FolderError(ValueError):
    """A folder of cases is not as it should be.

    Attributes:
        problems: one line each, with the file that it is about.
    """

    def __init__(self, root: Path, problems: list[str]) -> None:
        super().__init__(f"{root}:\n" + "\n".join(f"  - {problem}" for problem in problems))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class DatasetJson:
    """What ``dataset.json`` says.

    nnU-Net's keys mean what they mean there: ``channel_names``, ``labels``, ``file_ending`` and
    ``numTraining``. Two keys are added, which nnU-Net passes over: ``annotators``, a list of
    suffixes, or ``{"suffixes": [...], "cases": {case: [...]}}`` with those of the cases where not
    all annotators drew; and ``patients``, which names the patient of a case.

    Attributes:
        channel_names: in the order of the files' numbers.
        classes: name of each label, the background first.
        file_ending: ``.nii.gz`` or ``.nii``.
        suffixes: of the label files; empty with one annotator, whose files have none.
        exceptions: case -> the suffixes that it has, where they are not all.
        patients: case -> patient; a case that is not in it is a patient of its own.
        num_training: how many cases ``imagesTr`` should have, or None.
    """

    channel_names: tuple[str, ...]
    classes: tuple[str, ...]
    file_ending: str = ".nii.gz"
    suffixes: tuple[str, ...] = ()
    exceptions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    patients: Mapping[str, str] = field(default_factory=dict)
    num_training: int | None = None

    def annotators_of(self, case: str) -> tuple[str, ...]:
        """The suffixes of a case's label files; one empty suffix if there is one annotator."""
        return self.exceptions.get(case, self.suffixes) or ("",)

    def patient_of(self, case: str) -> str:
        """The patient of a case."""
        return self.patients.get(case, case)


def read_dataset_json(root: Path) -> DatasetJson:
    """Read and check ``dataset.json``.

    Raises:
        FolderError: The file is missing, no JSON, or says what it should not; all such problems.
    """
    path = root / "dataset.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_no_repetition)
    except FileNotFoundError:
        raise FolderError(root, ["dataset.json: no such file"]) from None
    except (OSError, ValueError) as error:
        raise FolderError(root, [f"dataset.json: cannot be read as JSON: {error}"]) from error
    if not isinstance(content, dict):
        raise FolderError(root, ["dataset.json: must be an object { ... }"])
    return _parse(root, content)


def _no_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that stands twice, of which Python would keep the last in silence."""
    keys = [key for key, _ in pairs]
    repeated = sorted({key for key in keys if keys.count(key) > 1})
    if repeated:
        raise ValueError(f"the key {repeated[0]!r} stands there twice")
    return dict(pairs)


def _parse(root: Path, content: dict[str, Any]) -> DatasetJson:
    """Check all keys before the first complaint is raised."""
    problems: list[str] = []

    def take(key: str, parse: Callable[[Any], T], default: T) -> T:
        try:
            if key in content:
                return parse(content[key])
            if not default:
                raise ValueError("is missing")
        except ValueError as error:
            problems.append(f"dataset.json: {key} {error}")
        return default

    if "modality" in content and "channel_names" not in content:
        problems.append(_of_nnunet_1(content["modality"]))
        content = {**content, "channel_names": {"0": "unknown"}}  # said already
    one_annotator: Annotators = ((), {})
    suffixes, exceptions = take("annotators", _annotators, one_annotator)
    parsed = DatasetJson(
        channel_names=take("channel_names", _channel_names, ()),
        classes=take("labels", _classes, ()),
        file_ending=take("file_ending", _file_ending, ".nii.gz"),
        suffixes=suffixes,
        exceptions=exceptions,
        patients=_patients(content.get("patients", {}), problems),
        num_training=_num_training(content.get("numTraining"), problems),
    )
    if problems:
        raise FolderError(root, problems)
    return parsed


def _of_nnunet_1(modality: Any) -> str:
    """What to write in the place of nnU-Net 1's key."""
    names = modality if isinstance(modality, dict) and modality else {"0": "CT"}
    return (
        "dataset.json: modality is nnU-Net 1's, now it is channel_names: write "
        f'"channel_names": {json.dumps(names)}'
    )


def _channel_names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, dict) or not value:
        raise ValueError('must name each channel, such as {"0": "CT"}')
    if set(value) != {str(i) for i in range(len(value))}:
        raise ValueError(f"must be numbered from 0 without gaps, not {sorted(value)}")
    if not all(isinstance(name, str) for name in value.values()):
        raise ValueError("must be strings")
    return tuple(value[str(i)] for i in range(len(value)))


def _classes(value: Any) -> tuple[str, ...]:
    if not isinstance(value, dict) or not value:
        raise ValueError('must give each class its number, such as {"background": 0, "lesion": 1}')
    if "ignore" in value:
        raise ValueError("has an ignore label, which is not supported: every voxel needs a class")
    if any(isinstance(number, list) for number in value.values()):
        raise ValueError("has regions (lists of numbers), which are not supported: one number each")
    if not all(type(number) is int for number in value.values()):
        raise ValueError(
            "must be integers by name; nnU-Net 1 had it the other way round, names by number"
            + _turned(value)
        )
    names = sorted(value, key=lambda name: int(value[name]))
    if len(names) < 2 or [value[name] for name in names] != list(range(len(names))):
        raise ValueError(
            "must be 0 for the background, then 1, 2, ... without gaps, not "
            f"{sorted(value.values())}"
        )
    return tuple(names)


def _turned(value: dict[str, Any]) -> str:
    """What to write in the place of nnU-Net 1's labels, if they are such."""
    if not all(number.isdecimal() and isinstance(name, str) for number, name in value.items()):
        return ""
    return f': write "labels": {json.dumps({name: int(n) for n, name in value.items()})}'


def _file_ending(value: Any) -> str:
    if value not in FILE_ENDINGS:
        raise ValueError(f"must be one of {', '.join(FILE_ENDINGS)}, not {value!r}")
    return str(value)


def _annotators(value: Any) -> Annotators:
    table = {"suffixes": value} if isinstance(value, list) else value
    if not isinstance(table, dict) or not set(table) <= {"suffixes", "cases"}:
        raise ValueError('must be a list of suffixes or {"suffixes": [...], "cases": {...}}')
    suffixes = _suffixes(table.get("suffixes"))
    cases = table.get("cases", {})
    if not isinstance(cases, dict):
        raise ValueError('must have "cases" as {case: [suffixes], ...}')
    exceptions = {case: _suffixes(some) for case, some in cases.items()}
    for case, some in exceptions.items():
        if not set(some) <= set(suffixes):
            raise ValueError(f"gives {case!r} {list(some)}, not all of which are in the suffixes")
    return suffixes, exceptions


def _suffixes(value: Any) -> tuple[str, ...]:
    good = isinstance(value, list) and all(
        isinstance(suffix, str) and suffix and not set(suffix) & set("/\\") for suffix in value
    )
    if not good or not value or len(set(value)) != len(value):
        raise ValueError(f"must list different suffixes, at least one, not {value!r}")
    return tuple(value)


def _patients(value: Any, problems: list[str]) -> dict[str, str]:
    if isinstance(value, dict) and all(isinstance(patient, str) for patient in value.values()):
        return value
    problems.append("dataset.json: patients must be {case: patient, ...}, names as strings")
    return {}


def _num_training(value: Any, problems: list[str]) -> int | None:
    if value is None or (type(value) is int and value >= 0):
        return value
    problems.append(f"dataset.json: numTraining must be a number of cases, not {value!r}")
    return None
