"""Cases to draw: discs that annotators and samples see in different sizes."""

import pytest
import torch

from revgrad.models.data import Case


def disc(size, x, y, r):
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return ((column - x) ** 2 + (row - y) ** 2 <= r**2).long()


@pytest.fixture
def case():
    """A disc around (20, 12) in 32x32, of three annotators."""
    annotators = torch.stack([disc(32, 20, 12, r) for r in (3, 4, 5)]).to(torch.uint8)
    return Case(torch.rand(1, 32, 32), annotators, name="scan 7", patient="p")


@pytest.fixture
def drawn():
    """Probabilities (5, 2, 32, 32): the disc of four samples, and an empty sample."""
    discs = torch.stack([disc(32, 20, 12, r) for r in (2, 3, 4, 5)] + [torch.zeros(32, 32)])
    foreground = 0.1 + 0.8 * discs.double()
    return torch.stack([1 - foreground, foreground], 1)
