"""Networks of others as segmenters."""

import pytest
import torch
from torch import nn

from revgrad.models import DeterministicSegmenter


class Deep(nn.Conv2d):
    def forward(self, image):
        return super().forward(image), image


def test_monais_unet_is_trained_by_its_cross_entropy():
    nets = pytest.importorskip("monai.networks.nets")
    torch.manual_seed(0)
    net = nets.UNet(3, 1, 3, channels=(4, 8), strides=(2,)).double()
    segmenter = DeterministicSegmenter(net, 3, 1, 3, divisor=2).double()
    image, masks = torch.randn(2, 1, 4, 6, 8).double(), torch.randint(3, (2, 4, 6, 8))
    segmenter.loss(image, masks).total.backward()
    found = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    (nn.functional.cross_entropy(net(image), masks, reduction="sum") / 2).backward()
    for one, parameter in zip(found, net.parameters(), strict=True):
        assert (one - parameter.grad).abs().max() < 1e-10
    assert torch.equal(segmenter.sample(image, 3)[:, 2], net(image))


@pytest.mark.parametrize(
    ("net", "error", "words"),
    [
        (Deep(1, 2, 1), TypeError, "Deep must give one tensor, the logits, not a tuple"),
        (nn.Conv2d(1, 3, 1), ValueError, r"must give logits \(1, 2, 4, 4\), not \(1, 3, 4, 4\)"),
        (nn.Conv2d(1, 2, 3), ValueError, r"must give logits \(1, 2, 4, 4\), not \(1, 2, 2, 2\)"),
    ],
    ids=["two-outputs", "classes", "size"],
)
def test_other_outputs_are_refused(net, error, words):
    with pytest.raises(error, match=words):
        DeterministicSegmenter(net, 2, 1, 2).sample(torch.zeros(1, 1, 4, 4), 1)
