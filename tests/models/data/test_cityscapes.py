import numpy as np
import pytest
import torch
from PIL import Image

from revgrad.models.data import CaseDataset, CityscapesFolder

SIZE = (16, 32)
CITIES = {
    "train": ("aachen", "darmstadt", "monchengladbach", "ulm", "zurich"),
    "val": ("frankfurt",),
}


def write(root, part, city, number, ids, pixels):
    for folder, array, kind in (
        ("leftImg8bit", pixels, "leftImg8bit"),
        ("gtFine", ids, "gtFine_labelIds"),
    ):
        path = root / folder / part / city / f"{city}_{number:06d}_000019_{kind}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
    return path


@pytest.fixture
def root(tmp_path):
    random = np.random.default_rng(0)
    for part, cities in CITIES.items():
        for city in cities:
            for number in range(2):
                ids = random.integers(0, 34, SIZE, dtype=np.uint8)
                pixels = random.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
                write(tmp_path, part, city, number, ids, pixels)
    return tmp_path


def test_splits_are_those_of_kohl_et_al(root):
    cities = {s: set(CityscapesFolder(root, s).patients) for s in ("train", "val", "test")}
    assert cities["train"] == {"aachen", "zurich"}
    assert cities["val"] == {"darmstadt", "monchengladbach", "ulm"}
    assert cities["test"] == {"frankfurt"}
    found = CityscapesFolder(root, "train", downscale=1)
    assert isinstance(found, CaseDataset)
    assert len(found) == 4 and len(list(found)) == 4
    assert found[1].name == "aachen_000001_000019" and found[1].patient == "aachen"
    assert len(found.classes) == 25
    assert found.classes[:3] == ("ignored", "road", "sidewalk")
    assert found.classes[20:] == ("sidewalk 2", "person 2", "car 2", "vegetation 2", "road 2")


def test_label_ids_become_the_scored_classes_and_switch(tmp_path):
    ids = np.array([[7, 8, 11, 33], [24, 26, 21, 0], [29, 255, 23, 7], [4, 30, 18, 31]], np.uint8)
    write(tmp_path, "train", "aachen", 0, ids, np.zeros((4, 4, 3), np.uint8))
    case = CityscapesFolder(tmp_path, "train", downscale=1)[0]
    expected = [[1, 2, 3, 19], [12, 14, 9, 0], [0, 0, 11, 1], [0, 0, 0, 17]]
    assert case.facts["scene"].tolist() == expected
    assert torch.equal(case.annotators[0], case.facts["scene"])
    assert torch.equal(case.facts["ignored"], case.facts["scene"] == 0)
    assert case.annotators.shape == (32, 4, 4) and len(case.weights) == 32
    all_thrown = [[24, 20, 3, 19], [21, 22, 23, 0], [0, 0, 11, 24], [0, 0, 0, 17]]
    assert case.annotators[31].tolist() == all_thrown


def test_downscaling_averages_the_image_and_keeps_the_middle_label(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (8, 16, 3), dtype=np.uint8)
    ids = np.arange(8 * 16, dtype=np.uint8).reshape(8, 16) % 34
    write(tmp_path, "train", "aachen", 0, ids, pixels)
    fine = CityscapesFolder(tmp_path, "train", downscale=1)[0]
    expected = torch.from_numpy(pixels).permute(2, 0, 1) / 255 - 0.5
    torch.testing.assert_close(fine.image, expected)
    coarse = CityscapesFolder(tmp_path, "train")[0]
    blocks = expected.reshape(3, 2, 4, 4, 4).mean((2, 4))
    torch.testing.assert_close(coarse.image, blocks, atol=0.51 / 255, rtol=0)
    assert torch.equal(coarse.facts["scene"], fine.facts["scene"][2::4, 2::4])


def test_other_classes_may_switch(root):
    found = CityscapesFolder(root, "val", downscale=1, probabilities={"sky": 0.5})
    assert found.classes[20:] == ("sky 2",) and found[0].facts["switches"] == ((11, 20),)
    with pytest.raises(ValueError, match=r"no classes of these names: \['moon'\]"):
        CityscapesFolder(root, "val", probabilities={"moon": 0.5})


def test_says_what_is_missing(root, tmp_path):
    with pytest.raises(ValueError, match="one of train, val, test"):
        CityscapesFolder(root, "dev")
    with pytest.raises(ValueError, match="downscale must be at least 1"):
        CityscapesFolder(root, "train", downscale=0)
    with pytest.raises(FileNotFoundError, match=r"nowhere.*no such folder"):
        CityscapesFolder(tmp_path / "nowhere", "train")
    (tmp_path / "empty" / "leftImg8bit" / "train").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="for split 'val'"):
        CityscapesFolder(tmp_path / "empty", "val")
    next((root / "gtFine" / "train" / "zurich").iterdir()).unlink()
    with pytest.raises(FileNotFoundError, match=r"zurich.*no label map"):
        CityscapesFolder(root, "train")


def test_says_which_file_is_wrong(root):
    image = root / "leftImg8bit" / "val" / "frankfurt" / "frankfurt_000000_000019_leftImg8bit.png"
    labels = root / "gtFine" / "val" / "frankfurt" / "frankfurt_000000_000019_gtFine_labelIds.png"
    picture = image.read_bytes()
    found = CityscapesFolder(root, "test")
    with pytest.raises(ValueError, match="does not divide by downscale=5"):
        CityscapesFolder(root, "test", downscale=5)[0]
    Image.fromarray(np.full(SIZE, 77, np.uint8)).save(labels)
    with pytest.raises(ValueError, match=r"labelIds\.png: label ids must be 0 to 33 or 255"):
        found[0]
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(labels)
    with pytest.raises(ValueError, match=r"leftImg8bit\.png: image .* differ in size"):
        found[0]
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(image)
    with pytest.raises(
        ValueError, match=r"leftImg8bit\.png: expected 8-bit RGB pixels, not mode L"
    ):
        found[0]
    for damaged in (b"no picture", picture[: len(picture) // 2]):
        image.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"leftImg8bit\.png: cannot be read as an image"):
            found[0]
