import math

import pytest
import torch
import torch.nn.functional as F

from revgrad.models import PHiSeg, ProbabilisticUNet
from revgrad.models.elbo import accumulated, residual_cross_entropy
from revgrad.models.losses import cross_entropy_per_image, dice_cross_entropy


def test_equals_the_value_worked_out_by_hand():
    # Two classes, two pixels, probabilities 3/4 and 1/4 in both; the labels are 0 and 1.
    logits = torch.tensor([[[math.log(3.0)] * 2, [0.0] * 2]], dtype=torch.float64)
    labels = torch.tensor([[0, 1]])
    cross_entropy = -(math.log(3 / 4) + math.log(1 / 4)) / 2
    dice_0 = 2 * (3 / 4) / (3 / 2 + 1)
    dice_1 = 2 * (1 / 4) / (1 / 2 + 1)

    both = dice_cross_entropy(logits, labels, smooth=0.0)
    foreground = dice_cross_entropy(logits, labels, smooth=0.0, include_background=False)

    assert both.item() == pytest.approx(cross_entropy + 1 - (dice_0 + dice_1) / 2)
    assert foreground.item() == pytest.approx(cross_entropy + 1 - dice_1)


@pytest.mark.parametrize("space", [(7,), (4, 5), (2, 3, 4)])
def test_the_cross_entropy_of_an_image_is_its_negative_log_likelihood(space):
    logits, labels = _random(space)
    found = cross_entropy_per_image(logits, labels)
    distribution = torch.distributions.Categorical(logits=logits.movedim(1, -1))
    torch.testing.assert_close(found, -distribution.log_prob(labels).flatten(1).sum(1))


def test_the_cross_entropy_of_an_image_is_widened_and_takes_small_integers():
    logits, labels = _random((4, 5))
    half = cross_entropy_per_image(logits.bfloat16(), labels.to(torch.uint8))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, cross_entropy_per_image(logits.bfloat16().float(), labels))


@pytest.mark.parametrize("space", [(7,), (4, 5), (2, 3, 4)])
def test_cross_entropy_part_equals_torch(space):
    logits, labels = _random(space)
    # A huge `smooth` makes every Dice coefficient one and leaves the cross-entropy.
    loss = dice_cross_entropy(logits, labels, smooth=1e15)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels))


def test_batch_takes_one_coefficient_over_all_images():
    logits, labels = _random((4, 5))
    apart = [dice_cross_entropy(logits[i : i + 1], labels[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(dice_cross_entropy(logits, labels), torch.stack(apart).mean())

    side_by_side = torch.cat(list(logits), -1)[None], torch.cat(list(labels), -1)[None]
    together = dice_cross_entropy(logits, labels, batch=True)
    torch.testing.assert_close(together, dice_cross_entropy(*side_by_side))


def test_right_and_certain_prediction_costs_nothing_even_with_absent_classes():
    labels = torch.tensor([[0, 2, 2]])
    logits = 1e3 * F.one_hot(labels, 4).movedim(-1, 1).double()
    assert dice_cross_entropy(logits, labels).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("options", [{}, {"batch": True}, {"include_background": False}])
def test_gradient(options):
    logits, labels = _random((3, 2))
    assert torch.autograd.gradcheck(
        lambda x: dice_cross_entropy(x, labels, **options), logits.requires_grad_()
    )


def _random(space):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, *space, generator=generator, dtype=torch.float64)
    return logits, torch.randint(3, (2, *space), generator=generator)


def test_class_weights_multiply_each_pixels_cross_entropy():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    labels = torch.randint(3, (2, 4, 5))
    weights = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    each = -logits.log_softmax(1).gather(1, labels[:, None])[:, 0]
    expected = (each * weights[labels]).sum((1, 2))
    torch.testing.assert_close(cross_entropy_per_image(logits, labels, weights), expected)
    # The finest level of the residual cross-entropy is the same, and so is the coarser one's rule.
    coarse = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    labels, logits = labels[..., :4], logits[..., :4]
    levels = residual_cross_entropy([logits, coarse], labels, weights)
    for found, total in zip(levels, accumulated([logits, coarse]), strict=True):
        full = F.interpolate(total, (4, 4), mode="nearest")
        torch.testing.assert_close(found, cross_entropy_per_image(full, labels, weights).mean())


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0), (1.0, -1.0), (1.0, math.nan)])
def test_wrong_class_weights_are_refused(weights):
    for make in (ProbabilisticUNet, PHiSeg):
        options = {"latent_levels": 2} if make is PHiSeg else {}
        with pytest.raises(ValueError, match="class_weights must be 2 positive numbers"):
            make(2, 1, 2, (4, 4), class_weights=weights, **options)
