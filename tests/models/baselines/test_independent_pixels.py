import torch

from revgrad.models import UNet
from revgrad.models.baselines import IndependentPixels


def drawn(n):
    torch.manual_seed(0)
    net = IndependentPixels(UNet(2, 1, 3, (4, 4), 1, norm=None)).eval()
    image = torch.randn(1, 1, 4, 4)
    return net, image, net.sample(image, n)


def test_a_sample_is_one_label_a_pixel():
    _, _, samples = drawn(5)
    assert set(samples.unique().tolist()) == {0.0, 20.0}
    assert torch.equal(samples.sum(2), torch.full((1, 5, 4, 4), 20.0))
    probabilities = samples.softmax(2)
    assert torch.equal(probabilities.amax(2), torch.ones(1, 5, 4, 4))
    assert probabilities.log().isfinite().all()


def test_each_pixel_has_the_softmax_as_frequencies():
    net, image, samples = drawn(4000)
    frequencies = (samples > 0).double().mean(1)
    # Five standard deviations of a frequency in 4000 draws.
    assert (frequencies - net.net(image).softmax(1)).abs().max() < 5 * 0.5 / 4000**0.5


def test_pixels_are_drawn_independently():
    _, _, samples = drawn(4000)
    labels = samples.argmax(2)[0].flatten(1).double().T
    correlation = torch.corrcoef(labels)
    off_diagonal = correlation - torch.diag(correlation.diagonal())
    assert off_diagonal.nan_to_num().abs().max() < 5 / 4000**0.5


def test_the_loss_is_the_networks():
    net, image, _ = drawn(1)
    masks = torch.randint(3, (1, 4, 4))
    assert torch.equal(net(image, masks).total, net.net(image, masks).total)
