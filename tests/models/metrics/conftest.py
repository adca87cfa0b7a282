"""The golden case of the metrics: discs on an 8x8 grid."""

import pytest
import torch


def disc(x, y, r):
    row, column = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    return ((column - x) ** 2 + (row - y) ** 2 <= r**2).long()


@pytest.fixture
def drawn():
    """Three samples, the last one empty."""
    return torch.stack([disc(3, 3, 2), disc(4, 3, 2), torch.zeros(8, 8).long()])


@pytest.fixture
def experts():
    """Four annotators: areas 13, 29, 0 and 5."""
    masks = [disc(3, 3, 2), disc(3, 4, 3), torch.zeros(8, 8).long(), disc(5, 5, 1)]
    assert [int(mask.sum()) for mask in masks] == [13, 29, 0, 5]
    return torch.stack(masks)
