"""PHiSeg's HDF5 file, from small files of its layout."""

import numpy as np
import pytest
import torch

from revgrad.models.data import CaseDataset, PHiSegHDF5

h5py = pytest.importorskip("h5py")

COUNTS = {"train": 5, "val": 2, "test": 3}


def part_of(number, count):
    rng = np.random.default_rng(number)
    return {
        "images": rng.random((count, 8, 8)) - 0.5,
        "labels": (rng.random((count, 8, 8, 4)) > 0.7).astype(np.uint8),
        "uids": np.arange(count) // 2 + 100 * number - 50,  # hashes may be negative
    }


@pytest.fixture
def content():
    return {part: part_of(i, count) for i, (part, count) in enumerate(COUNTS.items())}


def write(tmp_path, content):
    path = tmp_path / "data_lidc.hdf5"
    with h5py.File(path, "w") as file:
        for part, arrays in content.items():
            for key, array in arrays.items():
                file[f"{part}/{key}"] = array
    return path


@pytest.mark.parametrize("split", COUNTS)
def test_a_slice_is_what_the_file_holds(tmp_path, content, split):
    cases = PHiSegHDF5(write(tmp_path, content), split)
    assert isinstance(cases, CaseDataset) and len(cases) == COUNTS[split]
    own, case = content[split], cases[1]
    assert (case.name, case.patient) == (f"{split}/1", str(own["uids"][1])) and not case.facts
    assert case.patient == cases.patients[1]
    assert case.image.dtype == torch.float32
    assert (case.image[0].numpy() == own["images"][1].astype(np.float32)).all()
    assert (case.annotators.numpy() == own["labels"][1].transpose(2, 0, 1)).all()


def test_none_is_all_parts(tmp_path, content):
    assert len(PHiSegHDF5(write(tmp_path, content))) == 10


def test_more_classes_can_be_declared(tmp_path, content):
    content["val"]["labels"][0, 0, 0, 0] = 2
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=r"val/labels\[0\] has \[0, 1, 2\]; 2 classes"):
        PHiSegHDF5(path, "val")[0]
    assert PHiSegHDF5(path, "val", classes=("background", "a", "b"))[0].annotators.max() == 2


def test_nan_is_named(tmp_path, content):
    content["test"]["images"][2, 3, 3] = np.nan
    cases = PHiSegHDF5(write(tmp_path, content), "test")
    assert cases[1].image.isfinite().all()
    with pytest.raises(ValueError, match=r"test/images\[2\] has NaN"):
        cases[2]


def test_missing_keys_are_named(tmp_path, content):
    del content["val"]["uids"], content["test"]
    with pytest.raises(
        ValueError,
        match=r"lacks val/uids, test/images, test/labels, test/uids; it has .*train/images",
    ):
        PHiSegHDF5(write(tmp_path, content))


@pytest.mark.parametrize(
    ("key", "shape"), [("images", (2, 8, 8, 1)), ("labels", (2, 8, 7, 4)), ("uids", (3,))]
)
def test_shapes_that_do_not_fit_are_named(tmp_path, content, key, shape):
    content["val"][key] = np.zeros(shape)
    with pytest.raises(ValueError, match=rf"val has .*{key} .*{shape[-1]}"):
        PHiSegHDF5(write(tmp_path, content))


def test_a_series_in_two_parts_is_named(tmp_path, content):
    content["test"]["uids"][0] = content["train"]["uids"][0]
    with pytest.raises(ValueError, match="1 series are in train and in test, such as -50"):
        PHiSegHDF5(write(tmp_path, content))


def test_other_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.hdf5: no such file"):
        PHiSegHDF5(tmp_path / "absent.hdf5")
    (tmp_path / "text.hdf5").write_text("no HDF5")
    with pytest.raises(ValueError, match=r"text\.hdf5: cannot be read as HDF5"):
        PHiSegHDF5(tmp_path / "text.hdf5")
    with pytest.raises(ValueError, match="'train', 'val', 'test'"):
        PHiSegHDF5(tmp_path / "text.hdf5", "training")
