import math

import pytest
import torch

from revgrad.models.metrics import calibration_bins, calibration_gap, expected_calibration_error


def naive(mean, annotators, num_bins):
    """Pixel by pixel, in Python."""
    bins = [[] for _ in range(num_bins)]
    for pixel, labels in zip(mean.flatten(1).T.tolist(), annotators.flatten(1).T.tolist(),
                             strict=True):  # fmt: skip
        confidence = max(pixel)
        right = sum(label == pixel.index(confidence) for label in labels) / len(labels)
        bins[max(math.ceil(confidence * num_bins) - 1, 0)].append(confidence - right)
    return sum(abs(sum(b)) for b in bins) / sum(map(len, bins))


@pytest.mark.parametrize("space", [(5, 6), (2, 3, 4)])
@pytest.mark.parametrize("num_bins", [1, 4, 15])
def test_equals_a_naive_loop(space, num_bins):
    torch.manual_seed(0)
    mean = torch.randn(2, 3, *space, dtype=torch.float64).mul(2).softmax(1)
    annotators = torch.randint(3, (2, 4, *space))
    found = expected_calibration_error(mean, annotators, num_bins=num_bins, spatial_dims=len(space))
    expected = [naive(m, a, num_bins) for m, a in zip(mean, annotators, strict=True)]
    assert found.tolist() == pytest.approx(expected)


def test_worked_out_by_hand():
    # Pixels sure by 0.8: half of the annotations agree. Pixels sure by 1: all agree.
    mean = torch.tensor([[0.8, 0.8, 1.0, 1.0], [0.2, 0.2, 0.0, 0.0]], dtype=torch.float64)
    annotators = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 0]])
    options = {"num_bins": 10, "spatial_dims": 1}
    bins = calibration_bins(mean, annotators, **options)
    expected = torch.zeros(3, 10, dtype=torch.float64)
    expected[:, 7] = torch.tensor([2, 1.6, 1.0])  # 0.8 is the upper bound of the eighth bin
    expected[:, 9] = torch.tensor([2, 2.0, 2.0])
    torch.testing.assert_close(bins, expected)
    assert calibration_gap(bins).item() == pytest.approx(0.3 * 0.5)
    found = expected_calibration_error(mean, annotators, **options)
    assert found == calibration_gap(bins)


def test_labels_drawn_from_the_probabilities_are_calibrated():
    generator = torch.Generator().manual_seed(0)
    probability = torch.rand(200, 200, generator=generator)
    mean = torch.stack([1 - probability, probability])
    annotators = (torch.rand(4, 200, 200, generator=generator) < probability).long()
    # 160,000 draws of variance below 1/4, in 5 bins.
    assert expected_calibration_error(mean, annotators, num_bins=5) < 0.01
    overconfident = (mean**4) / (mean**4).sum(0)
    assert expected_calibration_error(overconfident, annotators, num_bins=5) > 0.1


def test_refuses_no_bins():
    with pytest.raises(ValueError, match="num_bins must be at least 1, got 0"):
        expected_calibration_error(
            torch.full((2, 4, 4), 0.5), torch.zeros(1, 4, 4, dtype=torch.int64), num_bins=0
        )
