"""Street scenes with a known truth: every annotation that can be, and its probability."""

from __future__ import annotations

import torch
from torch import Tensor

from revgrad.models.data.case import Case
from revgrad.models.data.street import STREET_CLASSES, Random, paint_street
from revgrad.models.data.switches import STREET_PROBABILITIES, SwitchClasses

SPLITS = {"train": 2000, "val": 100, "test": 200}
SMALLEST = 32


class Scenes:
    """Procedural street scenes, annotated by a known distribution of 32 modes.

    Sidewalk, person, car, vegetation and road turn into an alternative class each, as a whole and
    independently of each other and of the image, with probabilities 8/17, 7/17, 6/17, 5/17 and
    4/17 (Kohl et al. 2018, who switch Cityscapes' labels so). A case's `annotators` are all modes,
    ``(32, height, width)`` uint8, bit i of a mode's number being switch i; its `weights` are their
    probabilities. So the true distribution is known, and metrics against it are exact. Its `facts`
    are "scene", the label map before any switch, and "switches", the pairs of labels.

    Each of the five classes is in every image, with at least 1 % of its largest square. A scene is
    painted from its seed, split and number alone, on every machine alike, when it is first asked
    for, and kept: 16 KiB each at 64x64. Images are RGB, -0.5 to 0.5. Which switches are thrown
    can't be seen in them.

    Args:
        split: "train", "val" or "test"; they share no scene.
        size: height and width, at least 32 each; the width from half the height to four times it.
        count: number of scenes; by default 2000, 100 and 200.
        seed: another one gives other scenes.

    Attributes:
        switches: the transform that makes the modes.
        title, spatial_dims, in_channels, classes, patients: see `CaseDataset`. Each scene is a
            patient of its own.

    Raises:
        ValueError: an argument is not accepted.
    """

    title = "known truth: procedural street scenes, nothing real; 5 classes that switch, 32 modes"
    spatial_dims = 2
    in_channels = 3
    classes = (*STREET_CLASSES, *(f"{name} 2" for name in STREET_PROBABILITIES))

    def __init__(
        self,
        split: str,
        *,
        size: tuple[int, int] = (64, 64),
        count: int | None = None,
        seed: int = 0,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
        if len(size) != 2 or min(size) < SMALLEST or not 0.5 <= size[1] / size[0] <= 4:
            raise ValueError(
                f"size must be (height, width), at least {SMALLEST} each, the width from half the "
                f"height to four times it, not {size}"
            )
        if count is not None and count < 1:
            raise ValueError(f"count must be at least 1, not {count}")
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed must be 0 to 2^32 - 1, not {seed}")
        self.split, self.size, self.seed = split, tuple(size), seed
        self.switches = SwitchClasses.from_names(STREET_CLASSES, STREET_PROBABILITIES)
        self._count = SPLITS[split] if count is None else count
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def patients(self) -> tuple[str, ...]:
        """The name of each scene."""
        return tuple(self._name(index) for index in range(len(self)))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Case:
        if not -len(self) <= index < len(self):
            raise IndexError(f"scene {index} of {len(self)}")
        index %= len(self)
        image, labels = self._painted(index)
        return Case(
            image=(image.permute(2, 0, 1) / 255 - 0.5).contiguous(),
            annotators=self.switches.modes(labels),
            name=self._name(index),
            patient=self._name(index),
            weights=self.switches.probabilities,
            facts={"switches": self.switches.pairs, "scene": labels.clone()},
        )

    def _painted(self, index: int) -> tuple[Tensor, Tensor]:
        """Image ``(height, width, 3)`` and labels ``(height, width)``, both uint8."""
        if index not in self._kept:
            random = Random(self.seed, list(SPLITS).index(self.split), index)
            image, labels = map(torch.from_numpy, paint_street(random, *self.size))
            self._kept[index] = (image, labels)
        return self._kept[index]

    def _name(self, index: int) -> str:
        return f"{self.split}-{self.seed}-{index:05d}"
