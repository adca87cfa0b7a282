"""Networks and data by name."""

import numpy as np
import pytest
import torch

from revgrad.models import Segmenter
from revgrad.models.data import Scenes
from revgrad.models.training.registry import (
    DETERMINISTIC,
    MODELS,
    build_dataset,
    build_model,
    seeded,
)


def small(name):
    """Options of a network of two small levels: the presets' own are large."""
    if name == "iunet":
        return {"channels": [4, 8], "depths": [1, 1]}
    if "phiseg" in name and "unet" not in name:
        return {"channels": [4, 4], "latent_levels": 1}
    return {"channels": [4, 4], "depth": 1}


@pytest.mark.parametrize("name", MODELS)
def test_every_network_fits_the_data(name):
    torch.manual_seed(0)
    dataset = Scenes("val", size=(32, 32), count=1)
    network = build_model(name, dataset, small(name))
    assert isinstance(network, Segmenter)
    image = dataset[0].image[None]
    network.loss(image, dataset[0].annotators[:1].long()).total.backward()
    with torch.no_grad():
        first, second = network.eval().sample(image, 2)[0]
    assert first.shape == (12, 32, 32)
    assert torch.equal(first, second) == (name in DETERMINISTIC)


def test_files_come_with_their_path(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "data.hdf5"
    with h5py.File(path, "w") as file:
        for number, part in enumerate(("train", "val", "test")):
            file[f"{part}/images"] = np.zeros((2, 8, 8))
            file[f"{part}/labels"] = np.zeros((2, 8, 8, 4), np.uint8)
            file[f"{part}/uids"] = np.full(2, number)
    # Its split is its own, so that the seed of a run means nothing to it.
    assert build_dataset(f"phiseg-hdf5:{path}", "val", 7, {}).patients == ("1", "1")
    assert seeded(f"phiseg-hdf5:{path}", 7, {}) == {} and seeded("lidc", 7, {}) == {"seed": 7}
    with pytest.raises(FileNotFoundError, match="leftImg8bit"):
        build_dataset(f"cityscapes:{tmp_path}", "val", 0, {})


def test_a_wrong_option_says_which_are_accepted():
    with pytest.raises(ValueError, match="'sizes'; accepted are seed, ratios, slices, size, keep"):
        build_dataset("lidc", "val", 0, {"sizes": 64})
    dataset = Scenes("val", size=(32, 32), count=1)
    others = "recompute_glue, and the other options of what is named here"
    with pytest.raises(ValueError, match=rf"PHiSeg.*'channel'; accepted are channels,.* {others}"):
        build_model("revphiseg", dataset, {"channel": [4, 8]})


def test_the_seed_of_the_split_can_be_fixed():
    one, other = (build_dataset("lidc", "val", 3, options) for options in ({}, {"seed": 4}))
    assert set(one.patients) != set(other.patients)
    assert build_dataset("lidc", "val", 9, {"seed": 4}).patients == other.patients


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("phiseg-hdf5", "accepted are lidc, scenes, prostate, lidc-pickle:PATH, phiseg-hdf5:PATH"),
        ("nowhere/folder", "cityscapes:PATH and an existing folder"),
    ],
)
def test_unknown_data_are_refused(name, words):
    with pytest.raises(ValueError, match=words):
        build_dataset(name, "val", 0, {})
