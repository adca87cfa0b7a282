import pytest
import torch

from revgrad.models.metrics.dice import dice_per_class


def test_equals_counts():
    prediction = torch.tensor([[0, 1, 1], [2, 2, 0]])
    labels = torch.tensor([[0, 1, 2], [2, 2, 2]])
    expected = torch.tensor([2 * 1 / 3, 2 * 1 / 3, 2 * 2 / 6, float("nan")], dtype=torch.float64)
    found = dice_per_class(prediction, labels, classes=4)
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_refuses_different_shapes():
    with pytest.raises(ValueError, match=r"\(2,\) and labels \(3,\)"):
        dice_per_class(torch.zeros(2, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), 2)
