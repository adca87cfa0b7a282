import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from revgrad.models.data import CaseDataset, Scenes
from revgrad.models.data import street as painter
from revgrad.models.data.street import Random, paint_street

# Committed before any network was trained on the scenes; docs/known_truth.md repeats it.
FIRST_SCENES = "70c3f19801af42ae12c913e4c6e1e6fef346a6a608c65619473a96bc6d6a0f62"


def test_the_generator_is_as_it_was_before_any_training():
    digest = hashlib.sha256()
    for split in ("train", "val", "test"):
        scenes = Scenes(split)
        for case in (scenes[index] for index in range(8)):
            pixels = ((case.image + 0.5) * 255).round().to(torch.uint8)
            digest.update(pixels.numpy().tobytes() + case.annotators.numpy().tobytes())
    assert digest.hexdigest() == FIRST_SCENES


def test_a_case_is_the_whole_distribution_of_its_annotations():
    scenes = Scenes("train")
    case = scenes[3]
    assert isinstance(scenes, CaseDataset)
    assert case.image.shape == (3, 64, 64) and case.image.dtype == torch.float32
    assert case.image.min() >= -0.5 and case.image.max() <= 0.5
    assert case.annotators.shape == (32, 64, 64) and case.annotators.dtype == torch.uint8
    assert len(case.annotators.unique(dim=0)) == 32
    assert case.weights.shape == (32,) and case.weights.sum().item() == pytest.approx(1)
    assert torch.equal(case.annotators[0], case.facts["scene"])
    assert len(scenes.classes) == 12 and int(case.annotators.max()) == 11
    assert case.name == case.patient == scenes.patients[3]
    # In 8/17 of the annotations the sidewalk is "sidewalk 2".
    flipped = (case.annotators == scenes.classes.index("sidewalk 2")).flatten(1).any(1)
    assert case.weights[flipped].sum().item() == pytest.approx(8 / 17)


def test_scenes_depend_on_seed_split_and_number_alone():
    train = Scenes("train", count=5)
    assert torch.equal(train[2].image, Scenes("train", count=9)[2].image)
    assert torch.equal(train[-1].image, train[4].image) and train[-1].name == train[4].name
    others = [train[3], Scenes("val", count=5)[2], Scenes("train", count=5, seed=1)[2]]
    assert all(not torch.equal(train[2].image, other.image) for other in others)
    assert len(list(train)) == len(train) == 5
    assert [len(Scenes(split)) for split in ("train", "val", "test")] == [2000, 100, 200]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(32, 96), st.floats(0.5, 4))
def test_every_class_that_switches_can_be_seen_at_any_size(seed, height, ratio):
    width = max(32, min(round(height * ratio), 4 * height))
    image, labels = paint_street(Random(seed), height, width)
    assert image.shape == (height, width, 3) and labels.shape == (height, width)
    shares = torch.from_numpy(labels).flatten().bincount(minlength=7) / min(height, width) ** 2
    assert len(shares) == 7 and (shares[2:] >= painter.LEAST_SHARE).all()


def test_scenes_that_lack_a_class_are_painted_over(monkeypatch):
    def least(seed):
        _, labels = paint_street(Random(seed), 64, 64)
        return torch.from_numpy(labels).flatten().bincount(minlength=7)[2:].min() / 64**2

    assert min(least(seed) for seed in range(20)) < 0.03
    monkeypatch.setattr(painter, "LEAST_SHARE", 0.03)
    assert min(least(seed) for seed in range(20)) >= 0.03


def test_refuses_what_it_cannot_paint():
    with pytest.raises(ValueError, match="one of train, val, test, not 'dev'"):
        Scenes("dev")
    with pytest.raises(ValueError, match="at least 32 each"):
        Scenes("train", size=(16, 64))
    with pytest.raises(ValueError, match="four times"):
        Scenes("train", size=(32, 256))
    with pytest.raises(ValueError, match="count must be at least 1"):
        Scenes("train", count=0)
    with pytest.raises(ValueError, match="seed must be"):
        Scenes("train", seed=-1)
    with pytest.raises(IndexError, match="scene 5 of 5"):
        Scenes("train", count=5)[5]


def test_a_scene_that_was_kept_is_the_same_and_cannot_be_spoilt():
    scenes = Scenes("train", count=3)
    first = scenes[1]
    image, scene = first.image.clone(), first.facts["scene"].clone()
    for tensor in (first.image, first.annotators, first.facts["scene"]):
        tensor.zero_()
    again = scenes[1]
    assert torch.equal(again.image, image)
    assert torch.equal(again.facts["scene"], scene)
    assert torch.equal(again.annotators[0], scene)
