"""The examples that train a network, at a tiny size: gradients, memory, a falling loss."""

import gc
import importlib.util
import re
from pathlib import Path

import pytest
import torch

from revgrad import ReversibleSequence

FOLDER = Path(__file__).parents[2] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gradients(net, run, save_memory):
    """All gradients of a step from the same random numbers on."""
    for module in net.modules():
        if isinstance(module, ReversibleSequence):
            module.save_memory = save_memory
    torch.manual_seed(1)
    net.zero_grad()
    run()
    return [p.grad for p in net.parameters()]


def same_gradients(net, run):
    pairs = zip(gradients(net, run, True), gradients(net, run, False), strict=True)
    for got, want in pairs:
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-11)


# --- residual CNN ------------------------------------------------------------------------------


def test_residual_cnn(capsys):
    example = load("residual_cnn")
    torch.manual_seed(0)
    net = example.ResidualCNN(channels=4, depth=2).double()
    images, labels = example.gratings(4, 8, torch.Generator().manual_seed(0))
    loss = torch.nn.functional.cross_entropy
    same_gradients(net, lambda: loss(net(images.double()), labels).backward())
    plain, more = (example.activations(4, depth, 16, False) for depth in (2, 6))
    small, still = (example.activations(4, depth, 16, True) for depth in (2, 6))
    assert more > 2 * plain > 3 * small and still < 1.1 * small
    assert example.main(["--depth", "1", "--size", "8", "--steps", "2"]) == 0
    assert "right on new images after 2 steps" in capsys.readouterr().out


def test_residual_cnn_learns():
    torch.manual_seed(0)
    example = load("residual_cnn")
    assert example.train(example.ResidualCNN(4, 2), steps=40, size=16, seed=0) > 0.8


# --- transformer -------------------------------------------------------------------------------


def test_transformer(capsys):
    example = load("transformer")
    torch.manual_seed(0)
    net = example.Transformer(6, channels=16, heads=2, depth=3, dropout=0.3).double()
    tokens = torch.randint(example.DIGITS, (4, 6))
    same_gradients(net, lambda: example.step(net, tokens))
    reports = example.compare(net, 6)
    assert reports["reversible"].peak_without_scratch < 0.6 * reports["plain"].peak_without_scratch
    losses = example.train(net, 40, 6, seed=0)
    assert losses[-1] < 0.9 * losses[0]
    arguments = ["--length", "4", "--channels", "4", "--heads", "2", "--depth", "2", "--steps", "2"]
    assert example.main(arguments) == 0
    assert "reversible peak" in capsys.readouterr().out


def test_transformers_couplings_are_the_reformers():
    example = load("transformer")
    torch.manual_seed(0)
    net = example.Transformer(5, channels=4, heads=2, depth=2, dropout=0.0).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    a, b = x.chunk(2, -1)
    for layer in net.body:
        a = a + layer.f(b)
        b = b + layer.g(a)
    torch.testing.assert_close(net.body(x), torch.cat([a, b], -1))


# --- partially reversible U-Net ------------------------------------------------------------------


@pytest.mark.parametrize(("couplings", "parameters"), [(1, 12_365_283), (2, 18_248_403)])
def test_partially_reversible_unet_is_the_authors(couplings, parameters):
    """Their code has as many parameters, in its usual and its "fat" form."""
    example = load("partially_reversible_unet")
    with torch.device("meta"):
        net = example.PartiallyReversibleUNet(couplings=couplings)
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_partially_reversible_unet_stores_what_is_not_reversible():
    """By level with C channels: the outputs of both sequences, and for pooling and 1x1 convolutions
    their inputs; more couplings store nothing more."""
    example = load("partially_reversible_unet")
    images = torch.randn(1, 4, 8, 8, 8)
    stored = {}
    for couplings in (1, 3):
        net = example.PartiallyReversibleUNet((4, 8), groups=2, couplings=couplings)
        for saving in (True, False):
            net.save_memory(saving)
            stored[couplings, saving] = example.stored(net, images)
    assert stored[1, True] == stored[3, True]
    assert stored[3, False] > 1.5 * stored[1, False] > 3 * stored[1, True]


@pytest.mark.slow
def test_partially_reversible_unet_stores_no_more_than_the_authors_code():
    """Theirs was measured to store 783 bytes a voxel in its usual and its "fat" form."""
    example = load("partially_reversible_unet")
    images = torch.randn(1, 4, 16, 16, 16)
    for couplings in (1, 2):
        net = example.PartiallyReversibleUNet(couplings=couplings)
        assert 700 < example.stored(net, images) / 16**3 < 783


@pytest.mark.parametrize("arithmetic", ["float", "exact"])
def test_partially_reversible_unet_gradients(arithmetic):
    example = load("partially_reversible_unet")
    torch.manual_seed(0)
    net = example.PartiallyReversibleUNet((4, 8, 8), 2, 2, arithmetic).double()
    images, targets = example.volumes(2, 8, torch.Generator().manual_seed(0))
    images, targets = images.double(), targets.double()
    same_gradients(net, lambda: example.soft_dice_loss(net(images), targets).backward())


def test_partially_reversible_unet_data_and_loss():
    example = load("partially_reversible_unet")
    images, targets = example.volumes(2, 16, torch.Generator().manual_seed(0))
    assert images.shape == (2, 4, 16, 16, 16) and targets.shape == (2, 3, 16, 16, 16)
    whole, core, enhancing = targets.unbind(1)
    assert (core <= whole).all() and (enhancing <= core).all() and enhancing.sum() > 0
    logits = 40 * targets - 20  # a perfect answer
    torch.testing.assert_close(example.soft_dice_loss(logits, targets), torch.tensor(0.0))
    wrong = example.soft_dice_loss(-logits, targets).item()
    assert 0.59 < wrong <= 0.6


def test_partially_reversible_unet_runs(capsys):
    example = load("partially_reversible_unet")
    arguments = ["--channels", "4", "8", "--groups", "2", "--size", "8", "--steps", "6"]
    assert example.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    first, last = (float(word) for word in lines[1].replace(",", "").split() if "." in word)
    assert last < first
    assert [line.split()[0] for line in lines[2:]] == ["plain", "reversible"]


# --- MONAI ---------------------------------------------------------------------------------------


def test_convert_monai(capsys):
    pytest.importorskip("monai")
    example = load("convert_monai")
    gc.collect()  # what other tests left would count
    assert example.main(["--channels", "4", "--size", "32", "--steps", "2"]) == 0
    out = capsys.readouterr().out
    assert "replaced 18 of 23 convolutions" in out
    before, after = re.search(r"step: ([0-9.]+) MiB before, ([0-9.]+) after", out).groups()
    assert float(after) < 0.9 * float(before)


def test_convert_monai_without_monai(monkeypatch, capsys):
    example = load("convert_monai")

    def missing(*_):
        raise ModuleNotFoundError(name="monai")

    monkeypatch.setitem(example.NETWORKS, "BasicUNet", missing)
    with pytest.raises(SystemExit):
        example.main([])
    assert "BasicUNet needs another package: pip install monai" in capsys.readouterr().err


@pytest.mark.parametrize("dims", [2, 3])
def test_convert_monai_data(dims):
    images, labels = load("convert_monai").balls(3, (16,) * dims, torch.Generator().manual_seed(0))
    assert images.shape == (3, 1, *(16,) * dims) and labels.shape == (3, *(16,) * dims)
    assert 0 < labels.float().mean() < 0.3
    assert images[:, 0][labels == 1].mean() > 0.7 > 0.2 > images[:, 0][labels == 0].mean()
