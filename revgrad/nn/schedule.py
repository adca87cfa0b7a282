"""What is kept of each layer of a sequence for the backward pass: its schedule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

INVERT, RECOMPUTE, STORE = WAYS = ("invert", "recompute", "store")

Schedule = str | Mapping[Any, str] | Sequence[str]  # places are strings or numbers


class Ways:
    """The way of each layer, by its place.

    Args:
        given: One way for all layers; or one for each, in their order; or a mapping from places to
            ways. The place of a layer is its number; that of one in an inner sequence has a point
            between the numbers, as in "2.0", and "2" then stands for all that are inside. What is
            not in the mapping is inverted.
        places: All places of the sequence, those of inner sequences among them.

    Raises:
        TypeError, ValueError: It is none of these.
    """

    def __init__(self, given: Schedule, places: Iterable[str]) -> None:
        known = list(places)
        self._by_place: dict[str, str] = _by_place(given, [p for p in known if "." not in p])
        unknown = [place for place in self._by_place if place not in ("", *known)]
        if unknown:
            raise ValueError(
                f"the schedule has ways for {unknown}, but the places of the sequence's layers are "
                f"{', '.join(known) or 'none'}"
            )
        for place, way in self._by_place.items():
            if way not in WAYS:
                at = f" for layer {place}" if place else ""
                raise ValueError(f"the schedule must be one of {WAYS}{at}, not {way!r}")

    def of(self, place: str) -> str:
        """The way of the layer at a place: its own, or that of a sequence that it is in."""
        while place and place not in self._by_place:
            place = place.rpartition(".")[0]
        return self._by_place.get(place, INVERT)

    def plain(self, places: Iterable[str]) -> str | dict[str, str]:
        """One way, if it was given for all, or a dictionary from those of the places to ways."""
        if "" in self._by_place:
            return self._by_place[""]
        known = set(places)
        return {place: way for place, way in self._by_place.items() if place in known}


def _by_place(given: Any, top: Sequence[str]) -> dict[str, str]:
    if isinstance(given, str):
        return {"": given}
    if isinstance(given, Mapping):
        return {str(place): way for place, way in given.items()}
    if not isinstance(given, Sequence):
        raise TypeError(
            f"a schedule is one of {WAYS}, a list of them, or a dictionary from places to them, "
            f"not {type(given).__name__}"
        )
    if len(given) != len(top):
        raise ValueError(
            f"the schedule has {len(given)} ways, but the sequence has {len(top)} layers"
        )
    return dict(zip(top, given, strict=True))
