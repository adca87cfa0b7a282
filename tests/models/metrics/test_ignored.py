"""Metrics without the ignored pixels are the metrics of the rest of the image."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from revgrad.models.metrics import (
    drop_ignored,
    expected_calibration_error,
    generalized_energy_distance,
    hungarian_matched_iou,
    normalized_cross_correlation,
    sample_dice,
    volume_crps,
)

LABEL_METRICS = (
    generalized_energy_distance,
    hungarian_matched_iou,
    lambda *maps, **options: sample_dice(*maps, draws=None, **options),
    volume_crps,
)


def random_case(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randint(3, (2, 4, *shape), generator=generator)
    annotators = torch.randint(3, (2, 3, *shape), generator=generator).to(torch.uint8)
    logits = torch.randn(2, 4, 3, *shape, generator=generator, dtype=torch.float64)
    return samples, annotators, logits.softmax(2)


@given(st.integers(1, 5), st.integers(0, 2), st.integers(0, 2**20))
@settings(max_examples=25, deadline=None)
def test_a_common_rectangle_ignored_is_cropped(left, below, seed):
    samples, annotators, probabilities = random_case(seed, 4, 6)
    rest = (..., slice(below, None), slice(0, left))
    ignored = torch.full_like(annotators, 255)
    ignored[rest] = annotators[rest]
    maps = drop_ignored(samples, ignored, 255)
    for metric in LABEL_METRICS:
        found = metric(*maps, num_classes=3, spatial_dims=1)
        torch.testing.assert_close(found, metric(samples[rest], annotators[rest], num_classes=3))
    for metric, drawn in (
        (normalized_cross_correlation, probabilities),
        (expected_calibration_error, probabilities.mean(1)),
    ):
        found = metric(*drop_ignored(drawn, ignored, 255), spatial_dims=1)
        torch.testing.assert_close(
            found, metric(drawn[rest], annotators[rest]), equal_nan=True, rtol=1e-9, atol=1e-9
        )


def test_nothing_ignored_is_the_image_in_order():
    samples, annotators, _ = random_case(0, 2, 3, 4)
    drawn, truth = drop_ignored(samples, annotators, 255, spatial_dims=3)
    assert all(torch.equal(a, b.flatten(1)) for a, b in zip(drawn, samples, strict=True))
    assert all(torch.equal(a, b.flatten(1)) for a, b in zip(truth, annotators, strict=True))


def test_cases_may_lose_different_pixels_and_be_ragged():
    samples, annotators, _ = random_case(0, 4, 6)
    annotators[0, :, 1] = 255
    drawn, truth = drop_ignored(samples, [annotators[0], annotators[1, :2]], 255)
    assert [tuple(x.shape) for x in (*drawn, *truth)] == [(4, 18), (4, 24), (3, 18), (2, 24)]
    assert torch.equal(drawn[0], samples[0, :, [0, 2, 3]].flatten(1))


def test_a_label_that_the_type_cannot_hold_is_nowhere():
    samples, annotators, _ = random_case(0, 4, 6)
    annotators[:, :, 0] = 255
    assert drop_ignored(samples, annotators, -1)[1][0].shape == (3, 24)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("ragged", ValueError, "annotators of case 1 ignore different pixels .*255"),
        ("all", ValueError, "case 0 has no pixel left: all are 255"),
        ("floats", TypeError, "integer type, got torch.float32"),
        ("fewer", ValueError, "same cases, got 2 and 1"),
        ("smaller", ValueError, "differ in their last 2 axes"),
        ("no batch", ValueError, r"annotators must be \(A, \*spatial\)"),
        ("no case", ValueError, "samples hold no case"),
    ],
)
def test_says_what_is_wrong(change, error, message):
    maps = torch.zeros(2, 3, 4, 4, dtype=torch.int64)
    ragged = maps.clone()
    ragged[1, 2, 0, 0] = 255
    samples, annotators = {
        "ragged": (maps, ragged),
        "all": (maps, maps + 255),
        "floats": (maps, maps.float()),
        "fewer": (maps, maps[:1]),
        "smaller": (maps, maps[..., :3]),
        "no batch": (maps[0], maps[0]),
        "no case": ([], maps),
    }[change]
    with pytest.raises(error, match=message):
        drop_ignored(samples, annotators, 255)
