"""Classes that switch to an alternative as a whole: annotators whose distribution is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

# How often each class of a street scene becomes its alternative: Kohl et al. 2018, Cityscapes.
STREET_PROBABILITIES: dict[str, float] = {
    "sidewalk": 8 / 17,
    "person": 7 / 17,
    "car": 6 / 17,
    "vegetation": 5 / 17,
    "road": 4 / 17,
}

# A mode is a row of a table with an entry for each uint8 label, and there are 2^switches modes.
MOST_SWITCHES = 12
LABELS = 256


class Switch(NamedTuple):
    """A class that becomes another one in a part of the annotations.

    Attributes:
        label: the class in the label map.
        alternative: what all of its pixels become.
        probability: how often they do.
    """

    label: int
    alternative: int
    probability: float


class SwitchClasses:
    """A label transform: each of several classes switches to its alternative, or does not.

    The switches are independent of each other and of the image, and each flips all pixels of its
    class at once (Kohl et al. 2018, *A Probabilistic U-Net for Segmentation of Ambiguous Images*).
    So the distribution of annotations of any label map is known: 2^switches modes with product
    probabilities. Bit i of a mode's number is the i-th switch; mode 0 is the label map as it was.

    ``switch(labels, generator)`` draws one of them.

    Args:
        switches: the classes that switch, their alternatives, and how often.

    Attributes:
        pairs: label and alternative of each switch, as `switch_shares` takes them.
        flipped: ``(modes, switches)`` bool, which switches each mode has thrown.
        probabilities: ``(modes,)`` float64, how often each mode is drawn.

    Raises:
        ValueError: a label is not 0 to 255, stands in two switches, or a probability is not
            between 0 and 1; or there are no switches, or more than 12.
    """

    def __init__(self, switches: Sequence[Switch]) -> None:
        if not 1 <= len(switches) <= MOST_SWITCHES:
            raise ValueError(f"1 to {MOST_SWITCHES} switches are accepted, not {len(switches)}")
        self.switches = tuple(Switch(*switch) for switch in switches)
        named = [label for pair in self.pairs for label in pair]
        if len(set(named)) < len(named) or not set(named) <= set(range(LABELS)):
            raise ValueError(
                f"labels and alternatives must be different labels from 0 to {LABELS - 1}, got "
                f"{self.pairs}"
            )
        for switch in self.switches:
            if not 0 <= switch.probability <= 1:
                raise ValueError(f"a probability must be between 0 and 1, got {switch}")

    @classmethod
    def from_names(
        cls, classes: Sequence[str], probabilities: Mapping[str, float]
    ) -> SwitchClasses:
        """Switch some of the classes, by name; their alternatives are labelled after all of them.

        Raises:
            ValueError: a name is not among the classes.
        """
        unknown = set(probabilities) - set(classes)
        if unknown:
            raise ValueError(f"no classes of these names: {sorted(unknown)}; there are {classes}")
        return cls(
            [
                Switch(classes.index(name), len(classes) + index, probability)
                for index, (name, probability) in enumerate(probabilities.items())
            ]
        )

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Label and alternative of each switch."""
        return tuple((switch.label, switch.alternative) for switch in self.switches)

    @cached_property
    def flipped(self) -> Tensor:
        """Which switches each mode has thrown, ``(modes, switches)`` bool."""
        count = len(self.switches)
        return (torch.arange(2**count)[:, None] >> torch.arange(count)) % 2 == 1

    @cached_property
    def probabilities(self) -> Tensor:
        """How often each mode is drawn, ``(modes,)`` float64."""
        each = torch.tensor([s.probability for s in self.switches], dtype=torch.float64)
        return torch.where(self.flipped, each, 1 - each).prod(1)

    def modes(self, labels: Tensor) -> Tensor:
        """Every annotation of a label map, ``(modes, *spatial)`` in its type.

        Where a class that would switch is not there, modes are equal.
        """
        self._check(labels)
        return self._table.to(labels)[:, labels.long()]

    def mode(self, labels: Tensor, number: int) -> Tensor:
        """One annotation of a label map, in its shape and type."""
        self._check(labels)
        if not 0 <= number < len(self.flipped):
            raise ValueError(f"modes are 0 to {len(self.flipped) - 1}, not {number}")
        return self._table[number].to(labels)[labels.long()]

    def __call__(self, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw one annotation of a label map; from torch's global CPU generator by default."""
        drawn = torch.multinomial(self.probabilities, 1, generator=generator)
        return self.mode(labels, int(drawn))

    @cached_property
    def _table(self) -> Tensor:
        """What each label becomes in each mode, ``(modes, 256)``."""
        table = torch.arange(LABELS).repeat(len(self.flipped), 1)
        for index, (label, alternative) in enumerate(self.pairs):
            table[self.flipped[:, index], label] = alternative
        return table

    def _check(self, labels: Tensor) -> None:
        if labels.dtype not in (torch.uint8, torch.int16, torch.int32, torch.int64):
            raise TypeError(f"a label map must be integers, uint8 to int64, not {labels.dtype}")
        if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= LABELS):
            raise ValueError(
                f"labels must be 0 to {LABELS - 1}, got {int(labels.min())} to {int(labels.max())}"
            )
        already = {alternative for _, alternative in self.pairs} & set(labels.unique().tolist())
        if already:
            raise ValueError(
                f"the label map has alternatives already, {sorted(already)}: switch it only once"
            )
