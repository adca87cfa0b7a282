import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from revgrad.models import DiagonalGaussian, PHiSeg, RevPHiSeg
from revgrad.models.elbo import accumulated, elbo, residual_cross_entropy


def naive(logits, masks):
    """Every level at full size, scored on itself and everything deeper."""
    full = [F.interpolate(level, size=masks.shape[1:]) for level in logits]
    sums = [sum(full[level:]) for level in range(len(full))]
    return torch.stack([F.cross_entropy(s, masks, reduction="sum") / len(masks) for s in sums])


def random_levels(dims, levels, classes, batch, size=1):
    size = size * 2 ** (levels - 1)
    shapes = [[size // 2**level] * dims for level in range(levels)]
    logits = [
        torch.randn(batch, classes, *s, dtype=torch.float64, requires_grad=True) for s in shapes
    ]
    return logits, torch.randint(classes, (batch, *shapes[0]))


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([2, 3]), st.integers(1, 4), st.integers(2, 5), st.integers(1, 3))
def test_the_cross_entropies_are_those_at_full_size(dims, levels, classes, batch):
    torch.manual_seed(levels)
    logits, masks = random_levels(dims, levels, classes, batch)
    found, expected = residual_cross_entropy(logits, masks), naive(logits, masks)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = torch.arange(1.0, levels + 1, dtype=torch.float64)
    grads = [torch.autograd.grad((e * weights).sum(), logits) for e in (found, expected)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_the_gradient_is_that_of_finite_differences():
    torch.manual_seed(0)
    logits, masks = random_levels(2, 2, 3, 1)
    assert torch.autograd.gradcheck(lambda *x: residual_cross_entropy(x, masks), logits)


def test_uint8_masks_are_labels():
    logits, masks = random_levels(2, 2, 3, 1)
    assert torch.equal(
        residual_cross_entropy(logits, masks.byte()), residual_cross_entropy(logits, masks)
    )


def test_half_precision_logits_are_scored_in_float32():
    logits, masks = random_levels(2, 3, 2, 2)
    halves = [level.detach().bfloat16() for level in logits]
    found = residual_cross_entropy(halves, masks)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, naive([h.float() for h in halves], masks))


def test_accumulated_logits_leave_the_levels_as_they_are():
    logits, _ = random_levels(2, 3, 2, 1)
    copies = [level.detach().clone() for level in logits]
    accumulated(logits)
    assert all(torch.equal(a, b) for a, b in zip(logits, copies, strict=True))


def test_the_bound_is_the_sum_of_its_weighted_terms():
    torch.manual_seed(0)
    q, p = (
        [
            DiagonalGaussian(
                torch.randn(2, 2, s, s).double(), torch.rand(2, 2, s, s).double() + 0.1
            )
            for s in (4, 2)
        ]
        for _ in range(2)
    )
    reconstruction = torch.tensor([3.0, 5.0], dtype=torch.float64)
    found = elbo(reconstruction, q, p, (1.0, 4.0))
    kl = [
        torch.distributions.kl_divergence(
            torch.distributions.Normal(*a), torch.distributions.Normal(*b)
        )
        .sum((1, 2, 3))
        .mean()
        for a, b in zip(q, p, strict=True)
    ]
    torch.testing.assert_close(found.total, 8 + kl[0] + 4 * kl[1])
    torch.testing.assert_close(found.kl, torch.stack(kl))


def bad_start(cls, seed):
    """A tiny network with weights far too large, an image of outliers and extreme masks."""
    torch.manual_seed(seed)
    net = cls(2, 1, 2, (4, 6), 2, depth=1)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(30 if p.dim() > 1 else -5)
    image = torch.randn(2, 1, 8, 8) * 1e3
    masks = torch.stack([torch.zeros(8, 8), torch.ones(8, 8)]).long()
    return net, image, masks


def train(cls, seed, steps):
    net, image, masks = bad_start(cls, seed)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        found = net.loss(image, masks)
        assert torch.isfinite(found.total), found
        found.total.backward()
        assert all(torch.isfinite(p.grad).all() for p in net.parameters())
        optimizer.step()
    return found


@pytest.mark.parametrize("cls", [PHiSeg, RevPHiSeg])
def test_no_nan_in_the_first_steps_from_a_bad_start(cls):
    train(cls, 0, 8)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("cls", [PHiSeg, RevPHiSeg])
def test_no_nan_in_a_thousand_steps_from_bad_starts(cls, seed):
    train(cls, seed, 1000)
