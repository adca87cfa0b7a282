from importlib import resources

import numpy as np
import pytest
import torch

from revgrad.models.data.organs import ORGANS, load_organs


def test_volume_has_the_documented_form():
    volume = load_organs()
    assert volume.hounsfield.shape == volume.structures.shape == (30, 101, 122)
    assert volume.hounsfield.dtype == torch.int16 and volume.structures.dtype == torch.uint8
    assert volume.spacing == (3.0, 3.0, 3.0)
    assert volume.hounsfield.min() < -900 and volume.hounsfield.max() > 500
    assert len(volume.structures.unique()) == 1 + 41


def test_organs_are_where_anatomy_puts_them():
    volume = load_organs()
    organs = volume.organs()
    counts = organs.flatten().bincount().tolist()
    assert len(counts) == 1 + len(ORGANS) and min(counts) > 2000

    def middle(organ):  # slice, row, column
        return (organs == 1 + list(ORGANS).index(organ)).nonzero().double().mean(0)

    def mean_hu(organ):
        return volume.hounsfield[organs == 1 + list(ORGANS).index(organ)].double().mean()

    assert middle("liver")[2] < 61 < middle("spleen")[2]  # first column: the patient's right
    assert middle("stomach and bowel")[1] < middle("back muscles")[1]  # first row: anterior
    assert middle("kidneys")[0] < middle("lungs")[0]  # first slice: the lowest
    assert mean_hu("lungs") < -500 < 20 < mean_hu("liver") < 100 < mean_hu("spine and ribs")


def test_no_structure_belongs_to_two_organs():
    numbers = [number for organ in ORGANS.values() for number in organ]
    assert len(numbers) == len(set(numbers))


def test_sample_ships_small_and_with_its_source():
    samples = resources.files("revgrad.models.data") / "samples"
    assert len((samples / "organs_ct.npz").read_bytes()) < 600_000
    readme = (samples / "README.md").read_text(encoding="utf-8")
    assert "TotalSegmentator 2.18.0" in readme and "Apache" in readme


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.npz"):
        load_organs(tmp_path / "nothing.npz")


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "damaged.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged\.npz: cannot be read"):
        load_organs(path)


GOOD = {
    "ct": np.zeros((2, 3, 4), np.int16),
    "labels": np.zeros((2, 3, 4), np.uint8),
    "spacing": np.ones(3),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "missing.*labels"),
        ({"ct": np.zeros((2, 3, 4))}, "ct is float64"),
        ({"ct": np.zeros((2, 3, 5), np.int16)}, r"ct \(2, 3, 5\)"),
        ({"spacing": np.ones(2)}, r"spacing \(2,\)"),
    ],
)
def test_wrong_content_is_named(tmp_path, change, message):
    path = tmp_path / "volume.npz"
    _save(path, {name: array for name, array in (GOOD | change).items() if array is not None})
    with pytest.raises(ValueError, match=message):
        load_organs(path)


def test_a_file_of_the_same_form_is_read(tmp_path):
    _save(tmp_path / "volume.npz", GOOD)
    assert load_organs(tmp_path / "volume.npz").organs().shape == (2, 3, 4)


def _save(path, arrays):
    np.savez(path, allow_pickle=False, **arrays)
