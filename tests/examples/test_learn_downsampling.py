"""The example that learns a downsampling, on a part of a slice."""

import importlib.util
from pathlib import Path

import pytest
import torch

FILE = Path(__file__).parents[2] / "examples" / "learn_downsampling.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("learn_downsampling", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def image(example):
    return example.load_image(15)[:, :, 24:72, 24:88]


def test_learned_is_sparser_than_haar_and_haar_than_random(example, image):
    found = example.compare(image, steps=100)
    norms = {name: example.norm(values).item() for name, values in found.items()}
    assert norms["learned"] < 0.98 * norms["Haar"] < 0.7 * norms["random"]
    for values in found.values():  # orthogonal: the 2-norm is the image's
        assert values.shape == (1, 64, 6, 8)
        torch.testing.assert_close(values.norm(), image.norm())


def test_coefficients_give_the_image_back(example, image):
    net = example.downsampling("random")
    values = example.transform(net, image)
    again = net.inverse((values, values[:, :0]))[0]
    torch.testing.assert_close(again, image, rtol=0, atol=1e-5)


def test_mosaic_nests_the_levels(example, image):
    values = example.transform(example.downsampling("haar"), image)
    tiles = example.mosaic(values)
    assert tiles.shape == image.shape[2:]
    # the average of all averages in the corner, the channels of the first detail beside it
    assert torch.equal(tiles[:6, :8], values[0, 0])
    assert torch.equal(tiles[:6, 32:40], values[0, 16])
    assert torch.equal(tiles[:6, 8:16], values[0, 1])


def test_whole_run(example, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    output = tmp_path / "picture.png"
    assert example.main(["--steps", "2", "--output", str(output)]) == 0
    assert output.read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert all(f"{name:<9} 1-norm" in shown for name in ("random", "Haar", "learned"))
