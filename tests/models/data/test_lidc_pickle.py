"""The LIDC pickle of the PyTorch Probabilistic U-Net, from small files of its layout."""

import pickle

import numpy as np
import pytest
import torch

from revgrad.models.data import CaseDataset, LIDCPickle


def entry(number, size=8, annotators=4):
    rng = np.random.default_rng(number)
    masks = [(rng.random((size, size)) > 0.8).astype(np.uint8) for _ in range(annotators)]
    image = rng.random((size, size))
    return {"image": image, "masks": masks, "series_uid": f"1.3.6.{number // 3}"}


@pytest.fixture
def content():
    return {f"slice_{number}": entry(number) for number in range(18)}


def write(tmp_path, content):
    path = tmp_path / "data_lidc.pickle"
    path.write_bytes(pickle.dumps(content, 2))
    return path


def test_a_slice_is_what_the_file_holds(tmp_path, content):
    cases = LIDCPickle(write(tmp_path, content))
    assert isinstance(cases, CaseDataset) and len(cases) == 18
    case, expected = cases[4], content["slice_4"]
    assert (case.name, case.patient, case.weights) == ("slice_4", "1.3.6.1", None)
    assert case.image.shape == (1, 8, 8) and case.image.dtype == torch.float32
    wanted = torch.from_numpy(expected["image"] - 0.5)
    assert (case.image[0].double() - wanted).abs().max() < 1e-7
    assert case.annotators.dtype == torch.uint8
    assert (case.annotators.numpy() == np.stack(expected["masks"])).all()


def test_what_is_given_out_is_not_the_dataset_itself(tmp_path, content):
    cases = LIDCPickle(write(tmp_path, content))
    before = cases[0].image.clone()
    cases[0].image.zero_(), cases[0].annotators.zero_()
    assert torch.equal(cases[0].image, before) and cases[0].annotators.any()


def test_parts_share_no_series_and_lose_no_slice(tmp_path, content):
    path = write(tmp_path, content)
    parts = [LIDCPickle(path, split, seed=1) for split in ("train", "val", "test")]
    names = [case.name for part in parts for case in part]
    assert sorted(names) == sorted(content)
    series = [set(part.patients) for part in parts]
    assert sum(map(len, series)) == len(set.union(*series)) == 6
    assert all(case.patient == own for p in parts for case, own in zip(p, p.patients, strict=True))


def test_other_sizes_and_numbers_of_masks_are_read(tmp_path):
    cases = LIDCPickle(write(tmp_path, {"a": entry(0, 6, 3), "b": entry(1, 4, 1)}))
    assert [tuple(case.annotators.shape) for case in cases] == [(3, 6, 6), (1, 4, 4)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.full((8, 8), 1.5)}, r"'slice_2': image must be in \[0, 1\]"),
        ({"image": np.full((8, 8), np.nan)}, r"image must be in \[0, 1\]"),
        ({"image": np.zeros((8, 8, 1))}, r"two axes, not an array \(8, 8, 1\)"),
        ({"image": "text"}, "two axes, not a str"),
        ({"masks": []}, "at least one"),
        ({"masks": [np.zeros((8, 7))]}, r"image's shape \(8, 8\).*\(8, 7\)"),
        ({"masks": [np.full((8, 8), 2)]}, "masks must be 0 and 1"),
        ({"masks": None}, "masks must be"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path, content, change, message):
    content["slice_2"] |= change
    with pytest.raises(ValueError, match=message):
        LIDCPickle(write(tmp_path, content))


def test_missing_keys_are_named(tmp_path, content):
    del content["slice_3"]["series_uid"]
    with pytest.raises(ValueError, match=r"'slice_3'.*series_uid, found \['image', 'masks'\]"):
        LIDCPickle(write(tmp_path, content))


@pytest.mark.parametrize(("content", "found"), [([1], "a list"), ({}, "a dict")])
def test_another_content_is_named(tmp_path, content, found):
    with pytest.raises(ValueError, match=f"expected a dictionary of slices, found {found}"):
        LIDCPickle(write(tmp_path, content))
