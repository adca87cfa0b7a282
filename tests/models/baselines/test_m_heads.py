import pytest
import torch

from revgrad.models.baselines import MHeads
from revgrad.models.losses import cross_entropy_per_image


def heads(number=4, **options):
    torch.manual_seed(0)
    return MHeads(2, 1, 3, heads=number, channels=(4, 4), depth=1, norm=None, **options)


@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize("epsilon", [0, 0.05, 0.5])
def test_the_best_head_of_each_image_has_the_most_weight(number, epsilon):
    net = heads(number, epsilon=epsilon).double()
    image, masks = torch.randn(3, 1, 4, 4).double(), torch.randint(3, (3, 4, 4))
    total, best = 0.0, 0.0
    for x, mask in zip(image, masks, strict=True):
        losses = [
            cross_entropy_per_image(y, mask[None]) for y in net.sample(x[None], number)[0, :, None]
        ]
        losses = sorted(loss.item() for loss in losses)
        rest = epsilon / (number - 1) * sum(losses[1:]) if number > 1 else 0
        total += (losses[0] * (1 - epsilon if number > 1 else 1) + rest) / 3
        best += losses[0] / 3
    terms = net(image, masks)
    assert terms.total.item() == pytest.approx(total)
    assert terms.reconstruction.tolist() == pytest.approx([best])


def test_without_relaxation_only_the_best_head_learns():
    net = heads(epsilon=0)
    net(torch.randn(1, 1, 4, 4), torch.randint(3, (1, 4, 4))).total.backward()
    by_head = net.net.head.bias.grad.unflatten(0, (4, 3)).abs().sum(1)
    assert (by_head > 0).sum() == 1


def test_it_has_the_parameters_of_one_unet_and_the_heads():
    one, four = (sum(p.numel() for p in heads(m).parameters()) for m in (1, 4))
    assert four - one == 3 * (4 * 3 + 3)


def test_numbers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"5 samples .* 4 heads"):
        heads().sample(torch.randn(1, 1, 4, 4), 5)
    with pytest.raises(ValueError, match="heads=0"):
        heads(0)
    with pytest.raises(ValueError, match="epsilon"):
        heads(epsilon=1)
