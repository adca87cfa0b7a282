import pytest
import torch

from revgrad.models.metrics import label_frequencies, mean_prediction_dice, sample_dice
from revgrad.models.metrics.dice import dice_per_class

NAN = float("nan")
EVERY = {"num_classes": 2, "draws": None}


def dice(a, b):
    total = int(a.sum() + b.sum())
    return 2 * int((a * b).sum()) / total if total else 1.0


def test_all_annotators_is_the_mean_of_all_pairs(drawn, experts):
    expected = sum(dice(s, a) for s in drawn for a in experts) / 12
    assert sample_dice(drawn, experts, **EVERY).item() == pytest.approx(expected)


def test_draws_are_repeatable_and_tend_to_all_annotators(drawn, experts):
    possible = [sum(dice(s, a) for s in drawn) / 3 for a in experts]
    found = [
        sample_dice(drawn, experts, num_classes=2, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1, 2, 3)
    ]
    assert found[0] == found[1]
    assert len({f.item() for f in found}) > 1
    for value in found:
        assert min(abs(value.item() - p) for p in possible) < 1e-14

    many = sample_dice(
        drawn, experts, num_classes=2, draws=20_000, generator=torch.Generator().manual_seed(0)
    )
    # Standard error: the spread of `possible` (below 0.5) over the root of the draws.
    assert many.item() == pytest.approx(sum(possible) / 4, abs=4 * 0.5 / 20_000**0.5)


def test_each_image_of_a_batch_gets_a_draw_of_its_own(drawn, experts):
    generator = torch.Generator().manual_seed(0)
    batch = sample_dice(
        drawn.expand(20, -1, -1, -1),
        experts.expand(20, -1, -1, -1),
        num_classes=2,
        generator=generator,
    )
    assert len(set(batch.tolist())) == 4


@pytest.mark.parametrize(("empty", "expected"), [(1, 1.0), (0, 0.0), (NAN, NAN)])
def test_empty_masks(empty, expected):
    nothing = torch.zeros(1, 4, 4, dtype=torch.int64)
    found = sample_dice(nothing, nothing, num_classes=2, empty=empty)
    assert found.item() == pytest.approx(expected, nan_ok=True)


def test_per_class_equals_dice_per_class():
    torch.manual_seed(0)
    one, other = torch.randint(4, (1, 2, 3, 4)), torch.randint(4, (1, 2, 3, 4))
    options = {"num_classes": 5, "spatial_dims": 3, "include_background": True, "empty": NAN}
    found = sample_dice(one, other, **options, per_class=True)
    expected = dice_per_class(one, other, 5)
    assert expected.isnan().sum() == 1
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert sample_dice(one, other, **options) == expected.nanmean()


def test_mean_prediction_is_what_most_samples_say():
    torch.manual_seed(0)
    samples, annotators = torch.randint(3, (2, 5, 4, 4)), torch.randint(3, (2, 3, 4, 4))
    votes = label_frequencies(samples, num_classes=3)
    assert votes.shape == (2, 3, 4, 4)
    torch.testing.assert_close(votes.sum(1), torch.ones(2, 4, 4))
    assert votes[1, 2, 0, 0] == (samples[1, :, 0, 0] == 2).float().mean()
    found = mean_prediction_dice(votes, annotators, draws=None)
    majority = votes.argmax(1, keepdim=True)
    expected = sample_dice(majority, annotators, num_classes=3, draws=None)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert mean_prediction_dice(votes[0], annotators[0], draws=None) == found[0]


def test_threshold_is_above_which_class_one_is_said(experts):
    probability = torch.linspace(0, 1, 64).view(8, 8)
    mean = torch.stack([1 - probability, probability])
    for threshold in (0.25, 0.9):
        found = mean_prediction_dice(mean, experts, threshold=threshold, draws=None)
        expected = sum(dice((probability > threshold).long(), a) for a in experts) / 4
        assert found.item() == pytest.approx(expected)


def test_says_what_is_wrong(drawn, experts):
    with pytest.raises(ValueError, match="draws must be at least 1, or None"):
        sample_dice(drawn, experts, num_classes=2, draws=0)
    logits = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(
        ValueError, match=r"sum to 1 over the class axis, the axis -3 .*; of logits"
    ):
        mean_prediction_dice(logits, experts)
    with pytest.raises(ValueError, match="sum to 1"):
        mean_prediction_dice(logits.softmax(0) * float("nan"), experts)
    with pytest.raises(TypeError, match=r"in floats, got torch\.int64"):
        mean_prediction_dice(logits.long(), experts)
    with pytest.raises(ValueError, match="a threshold needs two classes, got 3"):
        mean_prediction_dice(torch.full((3, 8, 8), 1 / 3), experts, threshold=0.5)
    with pytest.raises(ValueError, match="differ in the number of classes: 2 and 4"):
        mean_prediction_dice(
            [torch.full((2, 8, 8), 0.5), torch.full((4, 8, 8), 0.25)], [experts, experts]
        )
