"""Augmentation: image and mask move alike, by what was drawn, and by the seed alone."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from revgrad.models.data.augment import PRESETS, Augmentation, _gaussian_matrix, augmentation

SIZE = (40, 56)


def coordinates(size=SIZE):
    """An image that says where each of its voxels is, from the centre."""
    axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def sources(augment, seed, size=SIZE):
    """Where the middle of the result came from, and where it is. Linear interpolation is exact."""
    here = coordinates(size)
    there, _ = augment(here, torch.zeros(size, dtype=torch.uint8), seed=seed)
    middle = tuple(slice(n // 4, -(n // 4)) if n > 8 else slice(None) for n in size)
    return there[:, *middle].double(), here[:, *middle].double()


def ball(size=SIZE):
    inside = 14 - (coordinates(size) ** 2).sum(0).sqrt()
    return inside[None], (inside > 0).to(torch.uint8)


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_rotation_turns_by_at_most_its_angle(seed):
    there, here = sources(Augmentation(rotation=20.0), seed)
    assert (there.norm(dim=0) - here.norm(dim=0)).abs().max() < 1e-4
    turned = torch.atan2(there[1], there[0]) - torch.atan2(here[1], here[0])
    turned = torch.remainder(turned + torch.pi, 2 * torch.pi) - torch.pi
    assert turned.std() < 1e-4 and turned.mean().abs() <= np.radians(20.0)


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_a_crop_is_a_window_of_the_image(seed):
    there, here = sources(Augmentation(crop=0.4), seed)
    slopes = [(there[a].diff(dim=a) / here[a].diff(dim=a)).flatten() for a in (0, 1)]
    side = slopes[0][0]
    assert all((slope - side).abs().max() < 1e-4 for slope in slopes) and 0.6 <= side <= 1
    for axis, length in enumerate(SIZE):
        middle = (there[axis] - side * here[axis]).mean()
        assert abs(middle) + side * length / 2 <= length / 2 + 1e-3  # the window is inside


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_scale_magnifies(seed):
    there, here = sources(Augmentation(scale=(0.8, 1.25)), seed)
    away = here.norm(dim=0) > 5
    factor = here.norm(dim=0)[away] / there.norm(dim=0)[away]
    assert factor.std() < 1e-4 and 0.8 <= factor.mean() <= 1.25


def test_elastic_displaces_smoothly_by_its_magnitude():
    shifts = {}
    for magnitude in (50.0, 100.0):
        augment = Augmentation(
            elastic_magnitude=(magnitude, magnitude), elastic_smoothness=(4.0, 4.0)
        )
        there, here = sources(augment, 5)
        shifts[magnitude] = there - here
    assert (shifts[100.0] - 2 * shifts[50.0]).abs().max() < 1e-3
    # White noise of variance 1/3, smoothed in the plane: deviation 1 / sqrt(3 * 4 pi) / 4.
    assert 0.5 < shifts[50.0].std() / (50 / (12 * np.pi) ** 0.5 / 4) < 1.5
    assert shifts[50.0].diff(dim=1).abs().mean() < shifts[50.0].abs().mean() / 3


@pytest.mark.parametrize(("length", "deviation"), [(9, 1.0), (20, 2.3), (50, 30.0)])
def test_smoothing_is_convolution_with_zeros_outside(length, deviation):
    values = np.random.default_rng(0).random(length)
    reach = int(4 * deviation + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    expected = np.convolve(values, kernel / kernel.sum())[reach : reach + length]
    found = torch.from_numpy(values).float() @ _gaussian_matrix(length, deviation)
    assert np.abs(found.numpy() - expected).max() < 1e-5


@given(st.integers(0, 10**6), st.sampled_from(["linear", "nearest"]))
@settings(max_examples=25, deadline=None)
def test_the_mask_goes_with_the_image(seed, interpolation):
    image, mask = ball()
    augment = augmentation("probabilistic_unet", gamma=(1.0, 1.0), mask_interpolation=interpolation)
    moved, labels = augment(image, mask, seed=seed)
    wrong = (labels == 1) != (moved[0] > 0)
    assert labels.any() and not wrong[moved[0].abs() > 1].any()  # a pixel from the outline


@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_labels_stay_labels(interpolation, dtype):
    mask = torch.tensor([0, 7, 200], dtype=dtype)[torch.arange(40 * 56).reshape(SIZE) // 700 % 3]
    augment = augmentation("probabilistic_unet", mask_interpolation=interpolation)
    image, moved = augment(coordinates(), mask, seed=(1, 2))
    assert moved.dtype == dtype and set(moved.unique().tolist()) <= {0, 7, 200}
    assert not torch.equal(moved, mask) and image.dtype == torch.float32
    assert type(image) is type(moved) is torch.Tensor


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_seed_alone_decides(name):
    augment, (image, mask) = augmentation(name), ball()
    image = image + torch.linspace(0, 1, image.numel()).reshape(image.shape)  # mirrored, it differs
    first = [augment(image, mask, seed=(3, 1, index)) for index in range(6)]
    torch.manual_seed(99), np.random.seed(99)
    again = [augment(image, mask, seed=(3, 1, index)) for index in reversed(range(6))][::-1]
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    differ = len({tuple(moved[0].flatten().tolist()) for moved in first})
    assert (differ == 1) == (name == "none")


def test_flips_mirror_image_and_mask_alike_in_all_four_ways():
    image = torch.arange(12.0).reshape(1, 3, 4)
    mask = torch.arange(12).reshape(3, 4)
    found = [augmentation("flips")(image, mask, seed=(0, index)) for index in range(60)]
    assert all(torch.equal(moved[0].long(), label) for moved, label in found)
    ways = {tuple(label.flatten().tolist()) for _, label in found}
    assert ways == {tuple(mask.flip(axes).flatten().tolist()) for axes in ([], [0], [1], [0, 1])}


def test_what_is_given_in_is_left_as_it_is():
    image, mask = ball()
    before = image.clone(), mask.clone()
    for index in range(5):
        augmentation("probabilistic_unet", flip=(-1, -2))(image, mask, seed=index)
    assert torch.equal(image, before[0]) and torch.equal(mask, before[1])


def test_the_numbers_of_a_seed_stay_the_same():
    # Of no meaning but that a training resumed with another version sees the same images.
    there, _ = sources(augmentation("probabilistic_unet", gamma_probability=0.0), (0, 1, 2))
    assert there[:, 0, 0].tolist() == pytest.approx(
        [-5.9065961837768555, -18.596336364746094], abs=1e-3
    )


def test_phiseg_changes_half_of_the_images_and_never_mirrors():
    changed = 0
    for seed in range(200):
        there, here = sources(augmentation("phiseg"), seed)
        changed += not torch.equal(there, here)
        assert (there[0].diff(dim=0) > 0).all() and (there[1].diff(dim=1) > 0).all()
    assert 75 <= changed <= 125  # four deviations


def test_mirroring_is_exact_and_of_each_axis_by_itself():
    image, mask = torch.randn(2, 6, 7), torch.arange(42).reshape(6, 7)
    wanted = {tuple(mask.flip(axes).flatten().tolist()) for axes in ((), (0,), (1,), (0, 1))}
    found = set()
    for seed in range(30):
        moved, labels = Augmentation(flip=(-1, -2))(image, mask, seed=seed)
        found.add(tuple(labels.flatten().tolist()))
        assert torch.equal(moved.flatten(1), image.flatten(1)[:, labels.flatten()])
    assert found == wanted


def test_contrast_keeps_mean_deviation_and_order():
    image, mask = torch.randn(1, 9, 9), torch.zeros(9, 9, dtype=torch.uint8)
    changed, same = Augmentation(gamma=(1.3, 1.4))(image, mask, seed=0)
    assert same is mask and (changed - image).abs().max() > 0.05
    assert torch.equal(changed.flatten().argsort(), image.flatten().argsort())
    assert abs(changed.mean() - image.mean()) < 1e-5 and abs(changed.std() - image.std()) < 1e-5


def test_in_3d_slices_stay_in_their_plane_when_rotated_and_cropped():
    there, here = sources(Augmentation(rotation=30.0, crop=0.3), 4, (6, 20, 24))
    assert (there[0] - here[0]).abs().max() < 1e-5 and (there[1] - here[1]).abs().max() > 0.5
    scaled, here = sources(Augmentation(scale=(1.2, 1.2)), 4, (20, 20, 24))
    assert (scaled * 1.2 - here).abs().max() < 1e-4
    image, mask = ball((20, 30, 30))
    moved, labels = augmentation("probabilistic_unet", gamma_probability=0.0)(image, mask, seed=1)
    assert not ((labels == 1) != (moved[0] > 0))[moved[0].abs() > 1].any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": (0.0, 1.0)}, "scale must be a range of positive"),
        ({"gamma": (1.5, 0.7)}, "gamma must be a range"),
        ({"elastic_magnitude": (-1.0, 0.0)}, "elastic_magnitude must be"),
        ({"probability": 1.5}, "probability must be from 0 to 1, not 1.5"),
        ({"crop": 1.0}, "crop must be from 0 to below 1"),
        ({"mask_interpolation": "cubic"}, "'linear', 'nearest'.*'cubic'"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**fields)


def test_wrong_calls_are_named():
    image, mask = ball()
    with pytest.raises(ValueError, match=r"not \(1, 40, 56\) and \(40, 55\)"):
        Augmentation()(image, mask[:, 1:], seed=0)
    with pytest.raises(ValueError, match=r"-1 to -2, and has \(-3,\)"):
        Augmentation(flip=(-3,))(image, mask, seed=0)
    with pytest.raises(ValueError, match=r"'none', 'flips', 'phiseg', .*'elastic'"):
        augmentation("elastic")


def test_monai_is_imported_only_when_something_is_done():
    code = (
        "import sys, torch; from revgrad.models.data import augmentation\n"
        "x, y = torch.zeros(1, 8, 8), torch.zeros(8, 8).long()\n"
        "a, b = augmentation('none')(x, y, seed=0)\n"
        "assert a is x and b is y\n"
        "[augmentation('flips')(x, y, seed=seed) for seed in range(9)]\n"
        "assert 'monai' not in sys.modules\n"
        "augmentation('probabilistic_unet')(x, y, seed=0); assert 'monai' in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
