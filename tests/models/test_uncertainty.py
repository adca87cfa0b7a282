"""Against naive loops, golden values, and what entropies must obey."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from revgrad.models import uncertainty_maps
from revgrad.models.metrics import normalized_cross_correlation


def draw(seed, *shape, sharpness=2.0):
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(*shape, generator=generator, dtype=torch.float64)
    return logits.softmax(2)


def entropy(values):
    return -sum(p * math.log(p) for p in values if p > 0)


def naive(samples, eps):
    """The five maps of one pixel, from a list of samples that are lists of probabilities."""
    n, classes = len(samples), range(len(samples[0]))
    mean = [sum(s[c] for s in samples) / n for c in classes]
    total, within = entropy(mean), sum(map(entropy, samples)) / n
    variance = sum((s[c] - mean[c]) ** 2 for s in samples for c in classes) / n
    cross = -sum(mean[c] * math.log(s[c] + eps) for s in samples for c in classes) / n
    return total, within, max(0, total - within), variance, cross


@pytest.mark.parametrize("space", [(2, 3), (2, 1, 3)])
@pytest.mark.parametrize("eps", [1e-8, 1e-2])
def test_equals_a_naive_loop(space, eps):
    probabilities = draw(0, 2, 4, 3, *space)
    probabilities[0, 1, :, 0] = torch.eye(3, dtype=torch.float64)[0].view(-1, *[1] * len(space[1:]))
    maps = uncertainty_maps(probabilities, eps=eps)
    for image, *pixel in itertools.product(range(2), *map(range, space)):
        samples = probabilities[(image, ..., *pixel)].tolist()
        found = [values[(image, *pixel)].item() for values in maps[1:]]
        assert found == pytest.approx(naive(samples, eps), abs=1e-13)
    assert torch.equal(maps.mean, probabilities.mean(1))


def test_two_sure_samples_that_contradict_each_other():
    probabilities = torch.eye(2, dtype=torch.float64).view(1, 2, 2, 1, 1)
    maps = uncertainty_maps(probabilities)
    assert maps.predictive_entropy.item() == maps.mutual_information.item() == math.log(2)
    assert maps.expected_entropy.item() == 0
    assert maps.variance.item() == 0.5
    assert maps.cross_entropy.item() == pytest.approx(-math.log(1e-8) / 2, abs=1e-6)


def test_two_unsure_samples_that_agree():
    maps = uncertainty_maps(torch.full((1, 2, 4, 1, 1), 0.25, dtype=torch.float64))
    assert maps.predictive_entropy.item() == maps.expected_entropy.item() == math.log(4)
    assert maps.mutual_information.item() == maps.variance.item() == 0


@given(st.integers(1, 5), st.integers(2, 4), st.integers(0, 2**20))
@settings(max_examples=30, deadline=None)
def test_bounds_and_symmetries(n, classes, seed):
    probabilities = draw(seed, 1, n, classes, 2, 3)
    maps = uncertainty_maps(probabilities)
    assert (maps.predictive_entropy <= math.log(classes) + 1e-12).all()
    assert (maps.expected_entropy <= maps.predictive_entropy + 1e-12).all()
    assert (maps.mutual_information <= math.log(n) + 1e-12).all()
    assert (maps.variance <= 1).all()
    # Gibbs: coding with each sample costs at least the entropy of the mean, up to eps.
    assert (maps.cross_entropy >= maps.predictive_entropy - 1e-6).all()
    for again in (
        probabilities.flip(1),
        probabilities.flip(2),
        probabilities.repeat(1, 2, 1, 1, 1),
    ):
        for one, other in zip(maps[1:], uncertainty_maps(again)[1:], strict=True):
            torch.testing.assert_close(other, one, rtol=0, atol=1e-12)


def test_cross_entropy_is_the_map_of_ncc():
    probabilities = draw(3, 1, 5, 2, 4, 6)
    annotators = torch.randint(2, (1, 1, 4, 6), generator=torch.Generator().manual_seed(0))
    errors = -(probabilities + 1e-8).log().mean(1).take_along_dim(annotators, 1)[:, 0]
    pair = torch.stack([uncertainty_maps(probabilities).cross_entropy.flatten(), errors.flatten()])
    found = normalized_cross_correlation(probabilities, annotators)
    torch.testing.assert_close(found[0], pair.corrcoef()[0, 1])


def test_half_precision_is_computed_in_single():
    probabilities = draw(1, 1, 3, 2, 4, 4).bfloat16()
    for one, other in zip(
        uncertainty_maps(probabilities), uncertainty_maps(probabilities.float()), strict=True
    ):
        assert one.dtype == torch.float32 and torch.equal(one, other)


@pytest.mark.parametrize(
    ("shape", "change", "error", "message"),
    [
        ((1, 2, 3, 4), lambda p: p.long(), TypeError, "in floats, got torch.int64"),
        ((2, 3, 4), lambda p: p, ValueError, r"\(N, n, C, \*spatial\).*got \(2, 3, 4\)"),
        ((1, 0, 2, 4), lambda p: p, ValueError, "empty"),
        ((1, 2, 1, 4), lambda p: p, ValueError, "two classes are needed"),
        ((1, 2, 3, 4), lambda p: p.log(), ValueError, r"-2 of \(2, 3, 4\); of logits take softmax"),
        ((1, 2, 3, 4), lambda p: p * float("nan"), ValueError, "sum to 1"),
    ],
)
def test_says_what_is_wrong(shape, change, error, message):
    with pytest.raises(error, match=message):
        uncertainty_maps(change(draw(0, *shape)))
