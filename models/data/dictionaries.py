"""Cases as MONAI's transforms and datasets take them: dictionaries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from revgrad.models.data.case import Case, CaseDataset


def as_dictionary(case: Case) -> dict[str, Any]:
    """Turn a case into a dictionary for MONAI's transforms, ``keys=("image", "label")``.

    Returns:
        ``image`` ``(channels, *spatial)`` and ``label`` ``(annotators, *spatial)``: annotators
        stand where MONAI has channels, so that a spatial transform moves all of them alike. Beside
        them ``case``, ``patient``, ``weights`` if there are any, and the case's facts.
    """
    known = {"image": case.image, "label": case.annotators, "case": case.name}
    known["patient"] = case.patient
    if case.weights is not None:
        known["weights"] = case.weights
    if clash := sorted(set(known) & set(case.facts)):
        raise ValueError(f"{case.name}: facts have keys that the dictionary needs: {clash}")
    return {**case.facts, **known}


class CaseDictionaries(Sequence[dict[str, Any]]):
    """A dataset of cases as the sequence of dictionaries that ``monai.data.Dataset`` takes.

    A case is loaded when it is asked for. ``monai.data.Dataset(CaseDictionaries(cases),
    transform)`` applies dictionary transforms to them; so do ``CacheDataset`` and others.

    Args:
        cases: the dataset.
    """

    def __init__(self, cases: CaseDataset) -> None:
        self._cases = cases

    def __len__(self) -> int:
        return len(self._cases)

    def __getitem__(self, index: Any) -> Any:
        """One dictionary, or for a slice a list of them."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"there are {len(self)} cases, not one of index {index}")
        return as_dictionary(self._cases[position])
