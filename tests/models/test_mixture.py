import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

from revgrad.models import DiagonalGaussian, GaussianMixture, PHiSeg, ProbabilisticUNet
from revgrad.models.mixture import fitted_kl


def gaussian(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    mean, unbounded = torch.randn((2, *shape), generator=generator, dtype=torch.float64)
    return DiagonalGaussian.from_unbounded(mean, unbounded)


def mixture(shape, count, seed):
    batch, channels, *space = shape
    parts = gaussian((batch, count * channels, *space), seed)
    logits = torch.randn((batch, count, *space), dtype=torch.float64)
    return GaussianMixture.from_channels(parts, logits, count)


def torchs(p):
    """The same mixture of torch.distributions, over vectors, whose axes are the last two."""
    mean, scale = (part.flatten(2).transpose(0, 1) for part in p.components)
    weights = Categorical(logits=p.log_weights.T)
    return MixtureSameFamily(weights, Independent(Normal(mean, scale), 1))


def test_one_component_is_a_gaussian():
    q, p = gaussian((3, 2, 4), 0), gaussian((3, 2, 4), 1)
    one = GaussianMixture.from_channels(p, torch.randn(3, 1, 4, dtype=torch.float64), 1)
    torch.testing.assert_close(q.kl_divergence(one), q.kl_divergence(p))
    torch.testing.assert_close(one.mean, p.mean)
    torch.testing.assert_close(one.scale, p.scale)


def test_equal_components_are_one_gaussian_whatever_their_weights():
    q, p = gaussian((3, 2), 0), gaussian((3, 2), 1)
    thrice = DiagonalGaussian(p.mean.repeat(1, 3), p.scale.repeat(1, 3))
    equal = GaussianMixture.from_channels(thrice, torch.randn(3, 3, dtype=torch.float64), 3)
    expected = kl_divergence(Normal(*q), Normal(*p)).sum(1)
    torch.testing.assert_close(q.kl_divergence(equal), expected)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 4))
def test_the_divergence_is_bounded_from_above(seed, count):
    torch.manual_seed(seed)
    q, p = gaussian((1, 1), seed), mixture((1, 1), count, seed + 1)
    # The divergence by quadrature over 12 standard deviations of q.
    grid = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    z = q.mean[0] + q.scale[0] * grid
    inside = Normal(*q).log_prob(z)[0] - torchs(p).log_prob(z[:, None])
    divergence = torch.trapezoid(Normal(0.0, 1.0).log_prob(grid).exp() * inside, grid)
    assert q.kl_divergence(p).item() >= divergence - 1e-6


def test_a_posterior_on_one_of_distant_components_costs_its_log_probability():
    mean = torch.tensor([[-50.0, 50.0, 50.0, -50.0]], dtype=torch.float64)
    parts = DiagonalGaussian(mean, torch.ones_like(mean))
    p = GaussianMixture.from_channels(parts, torch.tensor([[0.25, 0.75]]).log().double(), 2)
    for place, probability in ((mean[:, :2], 0.25), (mean[:, 2:], 0.75)):
        q = DiagonalGaussian(place, torch.ones_like(place))
        assert q.kl_divergence(p).item() == pytest.approx(-math.log(probability))


def test_moments_and_draws_are_those_of_torch():
    torch.manual_seed(0)
    p = mixture((2, 3), 3, 5)
    expected = torchs(p)
    torch.testing.assert_close(p.mean, expected.mean)
    torch.testing.assert_close(p.scale, expected.stddev)
    many = GaussianMixture(*(_repeated(part) for part in (p.log_weights, p.components)))
    drawn = many.rsample().unflatten(0, (2, 20_000)).transpose(0, 1)
    # All elements come of one component: the density says so as of torch's own draws.
    others = expected.sample((20_000,))
    for of in (lambda z: z, lambda z: z.square(), expected.log_prob):
        torch.testing.assert_close(of(drawn).mean(0), of(others).mean(0), atol=0.06, rtol=0.02)


def _repeated(part):
    if isinstance(part, DiagonalGaussian):
        return DiagonalGaussian(*map(_repeated, part))
    return part.repeat_interleave(20_000, 1)


def test_the_fitted_divergence_is_the_mixtures_and_draws_the_posterior_to_its_gaussian():
    torch.manual_seed(0)
    q, parts = gaussian((2, 3), 0), gaussian((2, 12), 1)
    logits = torch.randn(2, 4, dtype=torch.float64)
    leaves = [part.requires_grad_() for part in (*q, *parts, logits)]
    p = GaussianMixture.from_channels(parts, logits, 4)
    found = fitted_kl(q, p)
    assert torch.equal(found, q.kl_divergence(p))
    gradients = torch.autograd.grad(found.sum(), leaves, retain_graph=True)
    to_gaussian = torch.autograd.grad(q.kl_divergence(p.gaussian()).sum(), q, retain_graph=True)
    of_mixture = torch.autograd.grad(q.kl_divergence(p).sum(), leaves[2:])
    for one, other in zip(gradients, (*to_gaussian, *of_mixture), strict=True):
        torch.testing.assert_close(one, other)


def test_the_fitted_divergence_of_gaussians_is_the_ordinary_one():
    q, p = gaussian((2, 3), 0), gaussian((2, 3), 1)
    assert torch.equal(fitted_kl(q, p), q.kl_divergence(p))


@pytest.mark.parametrize("scale", ["softplus", "exp", None])
def test_the_posterior_starts_as_narrow_as_it_is_told(scale):
    torch.manual_seed(0)
    if scale is None:
        net = PHiSeg(2, 1, 2, (8, 8), 2, posterior_start=0.1)
    else:
        net = ProbabilisticUNet(2, 1, 2, (8, 8), 1, scale=scale, posterior_start=0.1)
    image, masks = torch.randn(4, 1, 8, 8), torch.randint(2, (4, 8, 8))
    for q, p in zip(net.posterior(image, masks), net.prior(image), strict=True):
        assert (q.scale.log() - math.log(0.1)).abs().mean() < 0.2
        assert p.scale.mean() > 0.5


@pytest.mark.parametrize("start", [0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("make", [ProbabilisticUNet, PHiSeg])
def test_a_start_that_is_no_standard_deviation_is_refused(make, start):
    with pytest.raises(ValueError, match="posterior_start must be a positive number or None"):
        make(2, 1, 2, (4, 4), **_smallest(make), posterior_start=start)


def test_any_start_can_be_reached_also_where_units_have_no_bias():
    for start in (1e-3, 0.1, 800.0):
        net = PHiSeg(2, 1, 2, (4, 4), 2, posterior_start=start, bias=False)
        for latent in net.posterior_network.latents:
            expected = torch.full_like(latent.scale.bias, start)
            torch.testing.assert_close(torch.nn.functional.softplus(latent.scale.bias), expected)


def test_a_network_learns_the_weights_of_alternatives_it_cannot_see():
    """Blank images, whose mask is all one class in three of four cases, else all the other."""
    torch.manual_seed(0)
    options = {"latent_channels": 2, "prior_components": 4, "beta": 4.0}
    net = ProbabilisticUNet(2, 1, 2, (8, 8), 1, **options)
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    image = torch.zeros(8, 1, 4, 4)
    masks = (torch.arange(8) < 2).long()[:, None, None].expand(-1, 4, 4)
    for _ in range(250):
        optimizer.zero_grad()
        net.loss(image, masks).total.backward()
        optimizer.step()
    with torch.no_grad():
        drawn = net.sample(image[:1], 1000)[0].argmax(1).double().mean((1, 2))
    assert ((drawn < 0.1) | (drawn > 0.9)).double().mean() > 0.95
    assert drawn.mean().item() == pytest.approx(0.25, abs=0.06)


@pytest.mark.parametrize("options", [{}, {"reversible": True, "recompute_glue": True}])
def test_the_deepest_prior_of_phiseg_is_a_mixture_and_all_of_it_learns(options):
    torch.manual_seed(0)
    net = PHiSeg(2, 1, 2, (8, 8), 2, prior_components=3, **options)
    image, masks = torch.randn(2, 1, 8, 8), torch.randint(2, (2, 8, 8))
    assert list(map(type, net.prior(image))) == [DiagonalGaussian, GaussianMixture]
    net.loss(image, masks).total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    (mean, weights) = (net.prior_network.latents[-1].get_submodule(n) for n in ("mean", "weights"))
    assert (mean.bias.grad != 0).all() and (weights.bias.grad != 0).all()
    assert net.sample(image, 3).shape == (2, 3, 2, 8, 8)


def test_wrong_numbers_of_components_are_refused():
    for make in (ProbabilisticUNet, PHiSeg):
        with pytest.raises(ValueError, match="at least 1 component, not 0"):
            make(2, 1, 2, (4, 4), **_smallest(make), prior_components=0)
    with pytest.raises(ValueError, match="has one component"):
        ProbabilisticUNet(2, 1, 2, (4, 4), conditional_prior=False, prior_components=2)


def _smallest(make):
    return {"latent_levels": 2} if make is PHiSeg else {}
