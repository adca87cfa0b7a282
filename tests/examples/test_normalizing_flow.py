"""The example that trains a flow, at a tiny size."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch

FILE = Path(__file__).parents[2] / "examples" / "normalizing_flow.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("normalizing_flow", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_likelihood_is_exact(example):
    torch.manual_seed(0)
    assert example.likelihood_error() < 1e-9


def test_bits_per_dimension_of_a_standard_normal(example):
    """A density that is known: normal numbers of deviation s take log2(s * sqrt(2 pi e)) bits."""
    torch.manual_seed(0)
    deviation = 0.1
    x = deviation * torch.randn(64, 1, 64, 64)
    latents, logdet = (x / deviation,), torch.full((64,), -64 * 64 * math.log(deviation))
    bits = example.bits_per_dimension(latents, logdet).item()
    assert abs(bits - 8 - math.log2(deviation * math.sqrt(2 * math.pi * math.e))) < 0.01


def test_training_needs_fewer_bits_and_saving_memory_changes_no_gradient(example):
    torch.manual_seed(0)
    net = example.flow(levels=2, depth=2, hidden=8)
    unseen = example.images(32, 8)
    with torch.no_grad():
        net(example.streams(example.images(32, 8)))
    before = example.evaluate(net, unseen)
    example.train(net, 40, 16, 8)
    assert example.evaluate(net, unseen) < before - 0.2
    assert example.round_trip_error(net, unseen) < 1e-4
    given = example.streams(unseen.double())
    gradients = []
    for net.save_memory in (True, False):
        net.double().zero_grad()
        example.bits_per_dimension(*net(given, logdet=True)).backward()
        gradients.append([p.grad.clone() for p in net.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert (a - b).abs().max() <= 1e-9 * (1 + b.abs().max())


def test_reversible_training_does_not_store_the_steps_of_flow(example):
    torch.manual_seed(0)
    peaks = {}
    for depth in (2, 6):
        net = example.flow(levels=1, depth=depth, hidden=16)
        with torch.no_grad():
            net(example.streams(example.images(8, 16)))
        peaks[depth] = example.peak_memory(net, example.images(8, 16))
        weights = sum(2 * p.numel() * p.element_size() for p in net.parameters())
        buffers = sum(b.untyped_storage().nbytes() for b in net.buffers())
        for name in peaks[depth]:
            peaks[depth][name] -= weights + buffers
    assert peaks[6]["reversible"] == peaks[2]["reversible"]
    assert peaks[6]["ordinary autograd"] > 2 * peaks[2]["ordinary autograd"]


def test_whole_run(example, capsys):
    options = ["--size", "8", "--depth", "1", "--hidden", "4", "--batch", "4", "--steps", "2"]
    assert example.main(options) == 0
    shown = capsys.readouterr().out
    assert "bits per dimension after 2 steps" in shown
    assert "reversible" in shown
    with pytest.raises(SystemExit):
        example.main(["--size", "12"])
    assert "--size must divide by 8" in capsys.readouterr().err
