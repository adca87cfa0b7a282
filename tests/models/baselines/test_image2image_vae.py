import torch
from torch.distributions import Normal, kl_divergence

from revgrad.models import ProbabilisticUNet
from revgrad.models.baselines import Image2ImageVAE


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_it_is_the_probabilistic_unet_less_its_prior_network():
    whole, vae = (make(2, 1, 2, (4, 8), 2) for make in (ProbabilisticUNet, Image2ImageVAE))
    assert parameters(vae) == parameters(whole) - parameters(whole.prior_network)


def test_the_divergence_is_from_the_standard_normal():
    net = Image2ImageVAE(2, 1, 2, (4, 4), 1).double()
    image, masks = torch.randn(2, 1, 4, 4).double(), torch.randint(2, (2, 4, 4))
    (posterior,) = net.posterior(image, masks)
    expected = kl_divergence(Normal(*posterior), Normal(0, 1)).sum(1).mean()
    torch.testing.assert_close(net(image, masks).kl[0], expected.detach())
