import math

import pytest
import torch

from revgrad.models.data.smooth import blur, smooth_noise


@pytest.mark.parametrize("sigma", [0.7, 1.5, 3.0])
def test_a_point_becomes_a_gaussian(sigma):
    plane = torch.zeros(41, 41, dtype=torch.float64)
    plane[20, 20] = 1
    blurred = blur(plane, sigma)
    place = torch.arange(41, dtype=torch.float64) - 20
    assert blurred.sum().item() == pytest.approx(1)
    variance = (blurred.sum(1) * place**2).sum().item()
    assert math.sqrt(variance) == pytest.approx(sigma, rel=0.02)  # cut off at three sigma
    torch.testing.assert_close(blurred, blurred.T)


def test_a_constant_stays_to_the_edge():
    plane = torch.full((9, 7), 3.0, dtype=torch.float64)
    torch.testing.assert_close(blur(plane, 2.0), plane)


def test_noise_has_unit_variance_and_the_length_asked_for():
    noise = smooth_noise((200, 200), 2.0, torch.Generator().manual_seed(0))
    assert noise.mean().abs() < 1e-5 and abs(noise.std().item() - 1) < 1e-5
    # White noise blurred by sigma correlates as exp(-d^2 / 4 sigma^2).
    correlation = (noise[:, 3:] * noise[:, :-3]).mean().item()
    assert correlation == pytest.approx(math.exp(-9 / 16), abs=0.1)
