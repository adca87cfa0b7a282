"""Cases as dictionaries, through MONAI's own dataset and transforms."""

import pytest
import torch

from revgrad.models.data import Case, CaseDictionaries, as_dictionary


def case(number, weights=None):
    image = torch.full((1, 4, 4), float(number))
    masks = torch.zeros(3, 4, 4, dtype=torch.uint8)
    masks[:, 0, number] = 1
    return Case(image, masks, f"case{number}", f"patient{number}", weights, {"spacing": (1.0, 2.0)})


def test_a_dictionary_has_all_that_the_case_has():
    weights = torch.tensor([0.5, 0.25, 0.25])
    one = case(1, weights)
    assert as_dictionary(one) == {
        "image": one.image,
        "label": one.annotators,
        "case": "case1",
        "patient": "patient1",
        "weights": weights,
        "spacing": (1.0, 2.0),
    }
    assert "weights" not in as_dictionary(case(1))


def test_facts_never_hide_the_image():
    masks = torch.zeros(1, 2, 2, dtype=torch.uint8)
    odd = Case(torch.zeros(1, 2, 2), masks, "c", "p", facts={"image": 3})
    with pytest.raises(ValueError, match=r"c: facts have keys .*\['image'\]"):
        as_dictionary(odd)


def test_monai_transforms_move_all_annotators_with_the_image():
    from monai.data import Dataset
    from monai.transforms import Flipd

    dictionaries = CaseDictionaries([case(0), case(1), case(2)])
    moved = Dataset(dictionaries, Flipd(["image", "label"], spatial_axis=1))[-2]
    assert torch.equal(torch.as_tensor(moved["label"]), case(1).annotators.flip(-1))
    assert moved["patient"] == "patient1"
    assert [d["case"] for d in dictionaries[1:]] == ["case1", "case2"]
    assert [d["case"] for d in dictionaries] == ["case0", "case1", "case2"]
    with pytest.raises(IndexError, match="3 cases"):
        dictionaries[3]


def test_monai_reads_the_files_of_a_folder(tmp_path):
    import nibabel
    import numpy as np
    from monai.transforms import LoadImaged

    paths = []
    for number in range(2):
        paths.append(str(tmp_path / f"label_r{number}.nii.gz"))
        array = np.full((4, 3, 2), number, np.uint8)
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), paths[-1])
    loaded = LoadImaged("label", ensure_channel_first=True)({"label": paths})
    assert loaded["label"].shape == (2, 4, 3, 2)
