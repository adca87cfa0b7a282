"""The recipes of `revgrad train --config`: what they compare, and that they train."""

from pathlib import Path

import pytest
import torch

from revgrad.models.training.command import prepare
from revgrad.models.training.config import TrainConfig, read_file

RECIPES = Path(__file__).parents[2] / "examples" / "recipes"
NAMES = sorted(path.stem for path in RECIPES.glob("*.toml"))
PAIR = ("lidc-phiseg", "lidc-revphiseg")


def recipe(name):
    # Threads are the whole process's: the other tests keep theirs.
    return {**read_file(RECIPES / f"{name}.toml"), "threads": 0}


def test_there_are_recipes():
    assert {*PAIR, "lidc-unet", "scenes-unet", "scenes-phiseg"} <= set(NAMES)


def test_the_pair_differs_in_the_model_alone():
    first, second = map(recipe, PAIR)
    changed = {key for key in first | second if first.get(key) != second.get(key)}
    assert changed == {"model", "output"}


def test_the_networks_differ_in_their_blocks_alone():
    plain, reversible = (prepare(TrainConfig.from_mapping(recipe(name))).network for name in PAIR)
    assert plain.kl_weights == reversible.kl_weights
    image = torch.zeros(1, 1, 32, 32)
    for made in (lambda net: net.eval().prior(image), lambda net: net.eval().sample(image, 1)):
        shapes = [
            [tuple(part.shape) for part in _tensors(made(net))] for net in (plain, reversible)
        ]
        assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains(name, tmp_path):
    values = {**recipe(name), "batch_size": 2, "output": str(tmp_path / "run")}
    if values["data"] == "scenes":
        values["data_options"] = {"count": 2}
    training = prepare(TrainConfig.from_mapping(values))
    before = {key: value.clone() for key, value in training.network.named_parameters()}
    training.take_step()  # in a warm-up the prior has no gradient yet
    terms = training.take_step()
    assert terms.total.isfinite()
    moved = [not torch.equal(before[key], p) for key, p in training.network.named_parameters()]
    assert sum(moved) > 0.9 * len(moved)


def _tensors(found):
    return [found] if isinstance(found, torch.Tensor) else [part.mean for part in found]
