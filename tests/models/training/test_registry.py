"""Networks and data by name."""

import inspect

import numpy as np
import pytest
import torch

from revgrad.models import PHiSeg, ProbabilisticUNet, Segmenter, UNet, iUNet
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
    listed = "accepted are channels, latent_levels, .* depth, .* arithmetic$"
    with pytest.raises(ValueError, match=f"PHiSeg.*'channel'; {listed}"):
        build_model("revphiseg", dataset, {"channel": [4, 8]})


def accepted(name, dataset):
    with pytest.raises(ValueError, match="'nothing'; accepted are ") as caught:
        build_model(name, dataset, {"nothing": 1})
    return str(caught.value).partition("; accepted are ")[2].split(", ")


@pytest.mark.parametrize("name", MODELS)
def test_all_options_that_are_listed_are_accepted(name):
    dataset = Scenes("val", size=(32, 32), count=1)
    names = accepted(name, dataset)
    assert len(set(names)) == len(names) and set(small(name)) < set(names)
    # Whatever is wrong with the value, the keyword is known.
    for option in names:
        try:
            build_model(name, dataset, {**small(name), option: object()})
        except (ValueError, TypeError, AttributeError, RuntimeError) as error:
            assert "keyword argument" not in str(error)


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("revphiseg", PHiSeg),
        ("revphiseg-iso", PHiSeg),
        ("iunet", iUNet),
        *[(name, UNet) for name in ("dropout-unet", "unet-ensemble", "m-heads")],
        ("independent-pixels", UNet),
        ("image2image-vae", ProbabilisticUNet),
    ],
)
def test_no_option_is_left_out(name, whole):
    names = accepted(name, Scenes("val", size=(32, 32), count=1))
    wanted = set([*inspect.signature(whole).parameters][3:]) - {"conditional_prior"}
    assert wanted <= set(names) and not {"options", "unet"} & set(names)


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
