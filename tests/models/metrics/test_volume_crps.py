import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from revgrad.models.metrics import volume_crps


def maps_of_volumes(*volumes):
    return torch.stack([(torch.arange(16).view(4, 4) < v).long() for v in volumes])


def integral(drawn, truth):
    """The score by its first definition, the integral of (F(x) - 1[x >= truth])^2."""
    return sum((sum(v <= x for v in drawn) / len(drawn) - (truth <= x)) ** 2 for x in range(0, 17))


volumes = st.lists(st.integers(0, 16), min_size=1, max_size=5)


@given(volumes, volumes)
@settings(max_examples=40, deadline=None)
def test_equals_the_integral(drawn, truth):
    found = volume_crps(maps_of_volumes(*drawn), maps_of_volumes(*truth), num_classes=2)
    expected = sum(integral(drawn, t) for t in truth) / len(truth)
    assert found.item() == pytest.approx(expected, abs=1e-12)


def test_one_sample_is_scored_by_its_absolute_error():
    found = volume_crps(maps_of_volumes(5), maps_of_volumes(9), num_classes=2, voxel_volume=0.5)
    assert found == 2.0


def test_unbiased_does_not_depend_on_the_number_of_samples():
    modes, truth = (2, 7, 12), maps_of_volumes(4)
    mean = {}
    for n, unbiased in itertools.product((2, 3), (True, False)):
        scores = [
            volume_crps(maps_of_volumes(*d), truth, num_classes=2, unbiased=unbiased)
            for d in itertools.product(modes, repeat=n)
        ]
        mean[n, unbiased] = torch.stack(scores).mean().item()
    assert mean[2, True] == pytest.approx(mean[3, True])
    assert mean[2, False] - mean[3, False] > 0.1


def test_classes_batches_and_three_dimensions():
    torch.manual_seed(0)
    samples, annotators = torch.randint(3, (2, 4, 2, 3, 3)), torch.randint(3, (2, 5, 2, 3, 3))
    options = {"num_classes": 3, "spatial_dims": 3}
    found = volume_crps(samples, annotators, **options, per_class=True)
    assert found.shape == (2, 2)
    alone = volume_crps((samples == 2).long(), (annotators == 2).long(), num_classes=2,
                        spatial_dims=3)  # fmt: skip
    torch.testing.assert_close(found[:, 1], alone)
    torch.testing.assert_close(volume_crps(samples, annotators, **options), found.mean(1))
    assert volume_crps(samples[1], annotators[1], **options) == found[1].mean()


def test_unbiased_needs_two_samples():
    with pytest.raises(ValueError, match="needs two, got one"):
        volume_crps(maps_of_volumes(5), maps_of_volumes(9), num_classes=2, unbiased=True)
