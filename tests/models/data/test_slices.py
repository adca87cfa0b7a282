import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from revgrad.models.data import centre_crop_or_pad, prepare_slices, resample_in_plane, z_score

SPACING = st.floats(0.3, 2.0)


@given(st.integers(2, 20), st.integers(2, 20), SPACING, SPACING, SPACING)
def test_a_linear_image_stays_linear(rows, columns, across, along, new):
    """Linear interpolation gives back a ramp in millimetres, wherever the old grid reaches."""

    def ramp(rows, columns, across, along):
        y = (torch.arange(rows, dtype=torch.float64) - (rows - 1) / 2) * across
        x = (torch.arange(columns, dtype=torch.float64) - (columns - 1) / 2) * along
        return y, x, 2 * y[:, None] - 3 * x

    _, _, image = ramp(rows, columns, across, along)
    result = resample_in_plane(image, (across, along), (new, new), order=1)
    assert result.shape == (
        max(1, round(rows * across / new)),
        max(1, round(columns * along / new)),
    )
    y, x, expected = ramp(*result.shape, new, new)
    inside = (y.abs() <= (rows - 1) / 2 * across)[:, None] & (x.abs() <= (columns - 1) / 2 * along)
    torch.testing.assert_close(result[inside], expected[inside])


def test_labels_keep_their_values_and_area():
    labels = torch.zeros(2, 3, 60, 40, dtype=torch.uint8)
    labels[..., 10:40, 10:30] = 2
    result = resample_in_plane(labels, (0.5, 0.8), (0.6, 0.6), order=0)
    assert result.dtype == torch.uint8 and result.shape == (2, 3, 50, 53)
    assert set(result.unique().tolist()) == {0, 2}
    area = result[0, 0].ne(0).sum() * 0.36
    assert area.item() == pytest.approx(30 * 0.5 * 20 * 0.8, rel=0.05)


def test_half_the_pixels_take_every_second_one():
    row = torch.arange(6).expand(2, 6)
    assert resample_in_plane(row, (1, 1), (1, 2), order=0)[0].tolist() == [0, 2, 4]
    assert resample_in_plane(row.double(), (1, 1), (1, 2), order=1)[0].tolist() == [0.5, 2.5, 4.5]


def test_the_same_spacing_changes_nothing():
    image = torch.randn(2, 5, 7, dtype=torch.float64)
    for order in (0, 1):
        assert torch.equal(resample_in_plane(image, (0.6, 0.7), (0.6, 0.7), order=order), image)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_cropping_and_padding_keep_the_middle(rows, columns, size):
    image = torch.arange(1, rows * columns + 1).reshape(rows, columns)
    result = centre_crop_or_pad(image, size, value=-1)
    assert result.shape == (size, size)
    if size >= max(rows, columns):
        top, left = (size - rows) // 2, (size - columns) // 2
        assert torch.equal(result[top : top + rows, left : left + columns], image)
        assert (result == -1).sum() == size * size - rows * columns
    if size <= min(rows, columns):
        top, left = (rows - size) // 2, (columns - size) // 2
        assert torch.equal(result, image[top : top + size, left : left + size])


def test_z_score_has_mean_zero_and_deviation_one():
    result = z_score(torch.randint(0, 4000, (4, 9, 9), dtype=torch.int16))
    assert result.dtype == torch.float32
    assert result.mean().abs() < 1e-5
    assert result.std(correction=0).item() == pytest.approx(1)


def test_the_pipeline_pads_the_image_with_its_mean_and_labels_with_background():
    image = torch.rand(3, 50, 50) * 100 + 300
    labels = torch.ones(2, 3, 50, 50, dtype=torch.uint8)
    slices, annotators = prepare_slices(image, labels, (0.6, 0.6), size=64)
    assert slices.shape == (3, 64, 64) and annotators.shape == (2, 3, 64, 64)
    torch.testing.assert_close(slices[:, 7:57, 7:57], z_score(image))
    assert not slices[:, :7].any() and not annotators[..., :7].any()
    assert annotators.sum() == labels.sum()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: z_score(torch.ones(2, 2)), ValueError, "no z-score"),
        (lambda: z_score(torch.tensor([1.0, float("nan")])), ValueError, "no z-score"),
        (lambda: centre_crop_or_pad(torch.ones(2, 2), 0), ValueError, "size must be at least 1"),
        (
            lambda: resample_in_plane(torch.ones(2, 2), (1, 1), (1, 1), order=3),
            ValueError,
            "order must be 0",
        ),
        (
            lambda: resample_in_plane(torch.ones(2, 2).long(), (1, 1), (1, 1), order=1),
            TypeError,
            "labels take order=0",
        ),
        (
            lambda: resample_in_plane(torch.ones(2, 2), (1, 0), (1, 1), order=0),
            ValueError,
            "spacings must be positive",
        ),
        (
            lambda: prepare_slices(torch.rand(2, 4, 4), torch.ones(1, 2, 4, 4), (1, 1)),
            TypeError,
            "integer labels",
        ),
        (
            lambda: prepare_slices(torch.rand(2, 4, 4), torch.ones(2, 4, 4).long(), (1, 1)),
            ValueError,
            "of the same volume",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
