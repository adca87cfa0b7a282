import math

import pytest
import torch

from revgrad.models.metrics import normalized_cross_correlation

NAN = float("nan")


@pytest.fixture
def softmax(drawn):
    """Three samples' probabilities `(3, 2, 8, 8)` of the golden case."""
    one, two = drawn[0].double(), drawn[1].double()
    column = torch.arange(8, dtype=torch.float64).expand(8, 8)
    logits = torch.stack([4 * one - 2, 4 * two - 2, one - 2.5 + 0.05 * column])
    return torch.stack([torch.zeros_like(logits), logits], 1).softmax(1)


def naive(probabilities, annotators, eps=1e-8):
    """Pixel by pixel, in Python."""
    samples = probabilities.flatten(2).tolist()
    classes, pixels = len(samples[0]), len(samples[0][0])
    mean = [[sum(s[c][p] for s in samples) / len(samples) for p in range(pixels)]
            for c in range(classes)]  # fmt: skip

    def entropy(target):
        return [
            sum(-target[c][p] * math.log(s[c][p] + eps) for s in samples for c in range(classes))
            / len(samples)
            for p in range(pixels)
        ]

    def correlation(a, b):
        mean_a, mean_b = sum(a) / pixels, sum(b) / pixels
        product = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
        norm = math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))
        return product / norm

    found = []
    for annotator in annotators.flatten(1).tolist():
        one_hot = [[float(label == c) for label in annotator] for c in range(classes)]
        found.append(correlation(entropy(mean), entropy(one_hot)))
    return sum(found) / len(found)


def test_equals_the_reference_implementation(softmax, experts):
    found = normalized_cross_correlation(softmax, experts)
    assert found.item() == pytest.approx(0.6502947, abs=5e-8)


@pytest.mark.parametrize("space", [(3, 4), (2, 3, 2)])
def test_equals_a_naive_loop(space):
    torch.manual_seed(0)
    probabilities = torch.randn(2, 3, 4, *space, dtype=torch.float64).softmax(2)
    annotators = torch.randint(4, (2, 5, *space))
    found = normalized_cross_correlation(probabilities, annotators, spatial_dims=len(space))
    assert found.tolist() == pytest.approx(
        [naive(p, a) for p, a in zip(probabilities, annotators, strict=True)]
    )


def test_order_and_precision_do_not_matter(softmax, experts):
    expected = normalized_cross_correlation(softmax, experts)
    found = normalized_cross_correlation(softmax.flip(0), experts.roll(1, 0))
    torch.testing.assert_close(found, expected)
    single = normalized_cross_correlation(softmax.float(), experts)
    torch.testing.assert_close(single, expected, rtol=1e-5, atol=0)


def test_a_sure_model_that_is_wrong_where_annotators_say_so():
    # One sample: its uncertainty is its own entropy, nothing where it is sure.
    sure = torch.zeros(1, 2, 4, 4)
    sure[:, 0] = 1
    truth = torch.zeros(2, 4, 4, dtype=torch.int64)
    truth[1, 0, 0] = 1
    assert normalized_cross_correlation(sure, truth).isnan()
    assert normalized_cross_correlation(sure, truth, constant=0.0) == 0


def test_a_constant_error_map_is_left_out_of_the_mean():
    # Class 0 costs the same everywhere, so an empty annotator's error map is constant.
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(1, 3, 4, 4, dtype=torch.float64, generator=generator)
    probabilities[:, 0] = 0.3
    probabilities[:, 1:] *= 0.7 / probabilities[:, 1:].sum(1, keepdim=True)
    truth = torch.zeros(2, 4, 4, dtype=torch.int64)
    truth[1] = torch.randint(3, (4, 4), generator=generator)
    defined = normalized_cross_correlation(probabilities, truth[1:])
    assert not defined.isnan()
    assert normalized_cross_correlation(probabilities, truth) == defined
    zero = normalized_cross_correlation(probabilities, truth, constant=0.0)
    torch.testing.assert_close(zero, defined / 2)


def test_says_what_is_wrong(softmax, experts):
    with pytest.raises(ValueError, match=r"probabilities must be \(S, C, \*spatial\) for one case"):
        normalized_cross_correlation(softmax[0, 0], experts)
    with pytest.raises(ValueError, match="annotators must hold labels from 0 to 1"):
        normalized_cross_correlation(softmax, experts * 2)
    with pytest.raises(ValueError, match="same cases"):
        normalized_cross_correlation(softmax[None], experts)
