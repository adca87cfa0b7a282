import math

import pytest
import torch

from revgrad.models import DiagonalGaussian, ProbabilisticUNet
from revgrad.models.blocks import ConvStyle
from revgrad.models.latent_vector import Combination, VectorEncoder
from revgrad.models.probabilistic_unet import PRESETS
from revgrad.models.unet import CHANNELS, UNetBody

# A posterior that takes one-hot masks of two classes and not the mask itself has one more input
# channel, and two classes are one more output channel than a sigmoid needs.
ONE_HOT = 9 * 32
TWO_CLASSES = 32 + 1


def parameters(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def on_meta():
    with torch.device("meta"):
        return ProbabilisticUNet(2, 1, 2)


def test_the_parameters_are_those_of_the_lidc_version():
    # Knegt's code, measured; its latent vector has length 2.
    with torch.device("meta"):
        net = PRESETS["probabilistic-unet-lidc"](2, 1, 2)
    assert parameters(net.body) == 2_260_128
    assert parameters(net.prior_network) == 1_366_276
    assert parameters(net.posterior_network) == 1_366_564 + ONE_HOT
    assert parameters(net.combination) == 3_265 + TWO_CLASSES
    assert parameters(net) == 4_996_233 + ONE_HOT + TWO_CLASSES


def test_without_biases_a_batch_norm_adds_one_parameter_for_each_channel_of_a_unit():
    with torch.device("meta"):
        net = PRESETS["probabilistic-unet-phiseg"](2, 1, 2)
    down, up = 3 * sum(CHANNELS), 3 * sum(CHANNELS[:-1])
    units = 3 * down + up + 3 * CHANNELS[0]
    assert parameters(net) == parameters(on_meta()) + units


def test_the_parameters_with_seven_levels():
    assert parameters(on_meta()) == 17_945_625 + ONE_HOT + TWO_CLASSES


@pytest.mark.parametrize(
    ("published", "unet"),
    [
        (17_956_988, ConvStyle(2, norm=None)),
        (13_122_492, ConvStyle(2, norm="batch", reversible=True)),
    ],
)
def test_the_parameters_of_the_pair_in_revphisegs_code(published, unet):
    # Only its U-Net is reversible, and only then normalised; the other parts have batch norm in
    # both, and the combination one unit less. The last layer of the U-Net is never used.
    with torch.device("meta"):
        body = UNetBody(unet, 1, CHANNELS, 3, align_corners=False)
        style = ConvStyle(2, norm="batch")
        prior, posterior = (VectorEncoder(style, c, CHANNELS, 3, 6) for c in (1, 3))
        combination = Combination(style, 32, 6, 2, 2)
    dead = 32 * 2 + 2
    assert parameters(body, prior, posterior, combination) == published - dead


@pytest.mark.parametrize(("scale", "norm"), [("softplus", None), ("exp", "batch")])
def test_both_answers_are_learnt_as_wholes(scale, norm):
    torch.manual_seed(0)
    image = torch.randn(1, 1, 16, 16)
    image[..., 4:12, 4:12] += 2
    masks = torch.zeros(8, 16, 16, dtype=torch.int64)
    masks[::2, 4:12, 4:12] = 1  # half of the annotators outline the square, half see nothing
    net = ProbabilisticUNet(2, 1, 2, (8, 16, 16), 2, latent_channels=2, norm=norm, scale=scale)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    batch = image.repeat(8, 1, 1, 1)
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        terms = net(batch, masks)
        terms.total.backward()
        optimizer.step()
        losses.append(terms.total.item())
    # Without a latent vector 64 pixels of chance would cost 64 ln 2 nats, with it one draw ln 2.
    assert sum(losses[-20:]) / 20 < 64 * math.log(2) / 2
    with torch.no_grad():
        samples = net.eval().sample(image, 128).argmax(2)[0]
    inside = samples[:, 4:12, 4:12].double().mean((1, 2))
    whole, nothing = (inside > 0.9).double().mean(), (inside < 0.1).double().mean()
    assert whole + nothing > 0.75
    assert min(whole, nothing) > 0.15


def test_the_posterior_sees_image_and_centred_one_hot_masks():
    net = ProbabilisticUNet(2, 1, 3, (4, 4), 1)
    seen = []
    net.posterior_network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image, masks = torch.randn(1, 1, 4, 4), torch.randint(3, (1, 4, 4))
    net.posterior(image, masks)
    assert torch.equal(seen[0][:, :1], image)
    for label in range(3):
        assert torch.equal(seen[0][:, 1 + label], (masks == label).float() - 0.5)


def test_the_loss_weighs_the_divergence_with_beta():
    net = ProbabilisticUNet(2, 1, 2, (4, 4), 1, beta=10)
    terms = net(torch.randn(2, 1, 4, 4), torch.randint(2, (2, 4, 4)))
    torch.testing.assert_close(terms.total, terms.reconstruction[0] + 10 * terms.kl[0])


def test_reconstructions_are_from_the_posteriors_mean():
    net = ProbabilisticUNet(2, 1, 2, (4, 4), 1)
    image, masks = torch.randn(2, 1, 4, 4), torch.randint(2, (2, 4, 4))
    (posterior,) = net.posterior(image, masks)
    projected = net.combination.from_features(net.body(image)[0])
    expected = net.combination(projected, posterior.mean)
    assert torch.equal(net.reconstruct(image, masks), expected)


def test_samples_are_draws_of_the_prior():
    net = ProbabilisticUNet(2, 1, 2, (4, 4), 1).eval()
    image = torch.randn(1, 1, 4, 4)
    torch.manual_seed(1)
    samples = net.sample(image, 2)
    torch.manual_seed(1)
    (prior,) = net.prior(image)
    projected = net.combination.from_features(net.body(image)[0])
    for k in range(2):
        assert torch.equal(samples[:, k], net.combination(projected, prior.rsample()))


@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("reversible", [False, True])
@pytest.mark.parametrize("scale", ["softplus", "exp"])
def test_it_starts_near_the_standard_normal_and_even_logits(norm, reversible, scale):
    torch.manual_seed(0)
    options = {"norm": norm, "reversible": reversible, "scale": scale}
    net = ProbabilisticUNet(2, 1, 2, (16,) * 7, 3, **options)
    terms = net(torch.randn(2, 1, 64, 64), torch.randint(2, (2, 64, 64)))
    # The latent head's features are largest in reversible networks.
    assert terms.kl < terms.reconstruction / 10
    assert terms.reconstruction < 4 * 64 * 64 * math.log(2)


@pytest.mark.parametrize("scale", ["softplus", "exp"])
@pytest.mark.parametrize("factor", [1e-3, 1e5])
@pytest.mark.parametrize("steps", [30, pytest.param(1000, marks=pytest.mark.slow)])
def test_bad_starts_stay_finite(scale, factor, steps):
    torch.manual_seed(0)
    net = ProbabilisticUNet(2, 1, 2, (4, 4), 1, scale=scale)
    with torch.no_grad():
        for network in (net.prior_network, net.posterior_network):
            network.head.weight *= factor
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    image, masks = torch.randn(2, 1, 8, 8), torch.randint(2, (2, 8, 8))
    for _ in range(steps):
        optimizer.zero_grad()
        terms = net(image, masks)
        terms.total.backward()
        optimizer.step()
    assert all(p.isfinite().all() for p in net.parameters())
    assert terms.total.isfinite()


def test_a_prior_that_does_not_see_the_image_is_the_standard_normal():
    net = ProbabilisticUNet(2, 1, 2, (4, 4), 1, latent_channels=3, conditional_prior=False)
    (prior,) = net.double().prior(torch.randn(2, 1, 4, 4, dtype=torch.float64))
    assert isinstance(prior, DiagonalGaussian)
    assert torch.equal(prior.mean, torch.zeros(2, 3, dtype=torch.float64))
    assert torch.equal(prior.scale, torch.ones(2, 3, dtype=torch.float64))


@pytest.mark.parametrize("beta", [-1, float("nan"), float("inf")])
def test_a_wrong_beta_is_refused(beta):
    with pytest.raises(ValueError, match="beta must be finite"):
        ProbabilisticUNet(2, 1, 2, (4, 4), beta=beta)
