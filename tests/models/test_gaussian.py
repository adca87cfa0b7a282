import torch
from torch.distributions import Normal, kl_divergence

from revgrad.models import DiagonalGaussian


def random(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    mean, unbounded = torch.randn((2, *shape), generator=generator, dtype=torch.float64)
    return DiagonalGaussian.from_unbounded(mean, unbounded)


def test_the_divergence_is_that_of_torch():
    q, p = random((3, 2, 4, 4), 0), random((3, 2, 4, 4), 1)
    expected = kl_divergence(Normal(*q), Normal(*p)).sum((1, 2, 3))
    torch.testing.assert_close(q.kl_divergence(p), expected)


def test_the_divergence_of_two_known_distributions():
    q = DiagonalGaussian(torch.tensor([[1.0]]), torch.tensor([[0.5]]))
    p = DiagonalGaussian(torch.tensor([[0.0]]), torch.tensor([[2.0]]))
    assert abs(q.kl_divergence(p).item() - 1.0425444) < 1e-6


def test_gradients_are_finite_at_extreme_parameters():
    extremes = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4])
    grid = torch.stack(torch.meshgrid(*[extremes] * 4, indexing="ij")).flatten(1)
    leaves = [row[None].clone().requires_grad_() for row in grid]
    q, p = (DiagonalGaussian.from_unbounded(*pair) for pair in (leaves[:2], leaves[2:]))
    divergence = q.kl_divergence(p)
    divergence.sum().backward()
    assert divergence.isfinite().all()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


def test_samples_have_the_mean_and_the_scale():
    q = DiagonalGaussian(torch.full((40_000, 2), 3.0), torch.full((40_000, 2), 0.5))
    torch.manual_seed(0)
    sample = q.rsample()
    assert (sample.mean(0) - 3).abs().max() < 0.02
    assert (sample.std(0) - 0.5).abs().max() < 0.02


def test_half_precision_is_widened():
    half = torch.zeros(1, 2, dtype=torch.bfloat16)
    assert DiagonalGaussian.from_unbounded(half, half).scale.dtype == torch.float32


def test_log_scales_are_clamped_and_gradients_finite():
    log_scale = torch.tensor([[-1e4, -1.0, 0.0, 1.0, 1e4]], requires_grad=True)
    q = DiagonalGaussian.from_log_scale(torch.zeros(1, 5), log_scale)
    torch.testing.assert_close(q.scale[:, 1:4], log_scale[:, 1:4].exp())
    reversed_scales = DiagonalGaussian(q.mean + 1e4, q.scale.flip(1))
    divergence = q.kl_divergence(reversed_scales)
    divergence.sum().backward()
    assert divergence.isfinite().all()
    assert log_scale.grad.isfinite().all()
