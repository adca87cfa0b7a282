"""Random numbers as a pure function of what they are for, so that a resumed run draws the same."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """What random numbers are drawn for; each has its own stream."""

    WEIGHTS = 0
    ORDER = 1
    ANNOTATOR = 2
    AUGMENTATION = 3
    NOISE = 4
    VALIDATION = 5
    EVALUATION = 6


def derived_seed(seed: int, purpose: Purpose, *numbers: int) -> int:
    """A seed of 63 bits for one purpose and moment of a run."""
    words = np.random.SeedSequence((seed, purpose, *numbers)).generate_state(1, np.uint64)
    return int(words[0]) >> 1


def generator(seed: int, purpose: Purpose, *numbers: int) -> torch.Generator:
    """A generator on the CPU, seeded so."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose, *numbers))
