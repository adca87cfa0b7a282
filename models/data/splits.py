"""Parts of a dataset for training, validation and test that share no patient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import sha256

PARTS = ("train", "val", "test")
RATIOS = (0.6, 0.2, 0.2)


def split_by_patient(
    patients: Sequence[str], ratios: Sequence[float] = RATIOS, *, seed: int = 0
) -> list[list[int]]:
    """Deal out the cases of a dataset, all cases of a patient into the same part.

    The parts depend on the patients' names and the seed alone: not on the order of the cases, nor
    on how many cases a patient has, nor on a random generator that may change between versions.

    Args:
        patients: of each case, as `CaseDataset.patients`.
        ratios: share of the patients in each part, any number of parts; rescaled to sum 1.
        seed: another one gives other parts.

    Returns:
        For each part the indices of its cases, ascending.

    Raises:
        ValueError: a ratio is not positive, or there are too few patients for some part to have
            one.
    """
    if not ratios or not all(0 < ratio < math.inf for ratio in ratios):
        raise ValueError(f"ratios must be positive numbers, one for each part, not {ratios}")
    shuffled = sorted(set(patients), key=lambda name: sha256(f"{seed} {name}".encode()).digest())
    ends = [round(len(shuffled) * sum(ratios[: i + 1]) / sum(ratios)) for i in range(len(ratios))]
    part_of = {}
    for part, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        if start == end:
            raise ValueError(
                f"{len(shuffled)} patients are too few for ratios {tuple(ratios)}: part {part} of "
                f"{len(ratios)} would have none"
            )
        part_of.update(dict.fromkeys(shuffled[start:end], part))
    parts: list[list[int]] = [[] for _ in ratios]
    for index, name in enumerate(patients):
        parts[part_of[name]].append(index)
    return parts


def indices_of_part(
    split: str | None, patients: Sequence[str], ratios: Sequence[float] = RATIOS, *, seed: int = 0
) -> list[int]:
    """Indices of the cases of one part by its name, of all cases for None.

    Raises:
        ValueError: the name is none of ``PARTS``, or the ratios are not three.
    """
    if split is None:
        return list(range(len(patients)))
    if split not in PARTS or len(ratios) != len(PARTS):
        raise ValueError(
            f"split must be one of {PARTS} or None, with a ratio for each of the three, not "
            f"{split!r} with {tuple(ratios)}"
        )
    return split_by_patient(patients, ratios, seed=seed)[PARTS.index(split)]
