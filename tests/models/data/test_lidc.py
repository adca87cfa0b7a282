from importlib import resources

import numpy as np
import pytest
import torch

from revgrad.models.data import LIDC, CaseDataset, split_by_patient
from revgrad.models.data.lidc import read_lidc_masks
from revgrad.models.data.lidc_images import consensus_shape
from revgrad.models.data.smooth import blur
from revgrad.models.metrics import diversity, generalized_energy_distance
from revgrad.models.no_learning import majority_mask, threshold_samples


@pytest.fixture(scope="module")
def test_part():
    return LIDC("test")


def test_it_is_a_dataset_of_cases_that_says_what_it_is(test_part):
    assert isinstance(test_part, CaseDataset)
    assert test_part.title == "LIDC masks, synthetic images"
    assert LIDC(size=64).title == "LIDC masks, synthetic images, cut to 64 x 64"
    assert (test_part.spatial_dims, test_part.in_channels, len(test_part.classes)) == (2, 1, 2)
    case = test_part[0]
    assert case.image.shape == (1, 128, 128) and case.image.dtype == torch.float32
    assert case.annotators.shape == (4, 128, 128) and case.annotators.dtype == torch.uint8
    assert case.patient == test_part.patients[0] and case.patient.startswith("LIDC-IDRI-")
    assert 0.4 < case.facts["spacing"][0] < 1 and 1 <= case.facts["texture"] <= 5
    assert case.image.abs().max() <= 0.5


def test_all_nodules_are_there_and_each_in_one_part():
    assert len(LIDC()) == 897 and len(LIDC(slices="all")) == 6701
    assert len(set(LIDC().patients)) == 554
    parts = [LIDC(part) for part in ("train", "val", "test")]
    assert [len(part) for part in parts] == [524, 199, 174]
    assert not set(parts[0].patients) & set(parts[2].patients)
    assert set(LIDC("val", slices="all").patients) == set(parts[1].patients)


def test_the_masks_agree_as_much_as_is_known_of_them():
    """E[1 - IoU(Y, Y')] of the four annotators of 897 nodules is .200."""
    table = read_lidc_masks()
    masks = torch.from_numpy(np.unpackbits(table["masks"][table["largest"]], axis=-1))
    assert diversity(masks, num_classes=2).mean().item() == pytest.approx(0.200, abs=5e-4)
    # Every slice was outlined by somebody, not every one by everybody.
    assert table["masks"].any((1, 2, 3)).all() and not table["masks"].any((2, 3)).all()


def test_kept_cases_are_the_same_and_are_made_once(monkeypatch):
    fresh, kept = LIDC("val", size=32)[7], LIDC("val", size=32, keep=True)
    case = kept[7]
    monkeypatch.delattr("revgrad.models.data.lidc.lidc_image")  # not to be called again
    assert torch.equal(case.image, fresh.image) and case.name == fresh.name
    assert torch.equal(case.annotators, fresh.annotators)
    case.image.zero_()
    case.annotators.zero_()
    assert torch.equal(kept[7].image, fresh.image)
    assert torch.equal(kept[7].annotators, fresh.annotators)


def test_a_nodule_looks_the_same_in_every_part_split_and_selection():
    case = LIDC("train", seed=3)[5]
    everything = LIDC(slices="all")
    same = [
        i
        for i, patient in enumerate(everything.patients)
        if patient == case.patient and everything[i].name == case.name
    ]
    assert len(same) == 1
    again = everything[same[0]]
    assert torch.equal(again.image, case.image)
    assert torch.equal(again.annotators, case.annotators)


def test_names_are_unique():
    dataset = LIDC("val")
    assert len({dataset[i].name for i in range(len(dataset))}) == len(dataset)


def test_a_smaller_crop_is_the_middle_of_the_larger_one(test_part):
    small = LIDC("test", size=64)[7]
    assert torch.equal(small.image, test_part[7].image[:, 32:96, 32:96])
    assert torch.equal(small.annotators, test_part[7].annotators[:, 32:96, 32:96])


def test_the_image_does_not_give_the_answer_away(test_part):
    """Thresholds of the mean of the masks would come close to them with no learning."""
    scores = dict.fromkeys(("image", "image near the nodule", "majority", "mean of masks"), 0.0)
    for index in range(len(test_part)):
        case = test_part[index]
        near = torch.nn.functional.max_pool2d(consensus_shape(case.annotators)[None], 7, 1, 3)
        samples = {
            "image": threshold_samples(case.image),
            # Even told where to look, to three pixels:
            "image near the nodule": threshold_samples(case.image.where(near > 0, -0.5)),
            "majority": majority_mask(case.annotators),
            "mean of masks": threshold_samples(blur(case.annotators.float().mean(0), 1.0)[None]),
        }
        for name, maps in samples.items():
            distance = generalized_energy_distance(maps, case.annotators, num_classes=2)
            scores[name] += distance.item() / len(test_part)
    assert scores["image"] > 1
    assert scores["image near the nodule"] > 1.5 * scores["majority"]
    assert scores["mean of masks"] < 0.09 < 0.12 < scores["majority"] < 0.14


def test_every_nodule_can_be_seen(test_part):
    """Its mean stands out of the lung around it by .1 of the window: noise is at most .03."""

    def grown(shape, pixels):
        return torch.nn.functional.max_pool2d(shape[None], 2 * pixels + 1, 1, pixels)[0] > 0

    for index in range(0, len(test_part), 2):
        case = test_part[index]
        shape, image = consensus_shape(case.annotators), case.image[0]
        around = image[grown(shape, 6) & ~grown(shape, 3)]
        lung = around[around <= around.median()]  # the brighter half may be the chest wall
        assert image[shape > 0].mean() > lung.mean() + 0.1, case.name


def test_samples_ship_small_and_with_their_source():
    samples = resources.files("revgrad.models.data") / "samples"
    assert len((samples / "lidc_masks.npz").read_bytes()) < 700_000
    readme = (samples / "README.md").read_text(encoding="utf-8")
    for word in (
        "CC BY 3.0",
        "Armato",
        "10.7937/K9/TCIA.2015.LO9QL9SX",
        "National Cancer Institute",
    ):
        assert word in readme
    assert "(NCI)" in readme and "(FNIH)" in readme


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "tests"}, "split must be one of"),
        ({"slices": "some"}, "slices must be 'largest' or 'all', not 'some'"),
        ({"size": 256}, "size must be 16 to 128"),
        ({"split": "val", "ratios": (0.5, 0.5)}, "a ratio for each of the three"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        LIDC(**options)


def test_the_split_is_that_of_all_patients():
    everyone = LIDC()
    part = split_by_patient(everyone.patients, (0.6, 0.2, 0.2), seed=0)[1]
    assert LIDC("val").patients == tuple(everyone.patients[index] for index in part)


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.npz"):
        LIDC(path=tmp_path / "nothing.npz")
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"damaged\.npz: cannot be read"):
        LIDC(path=damaged)
    table = read_lidc_masks()
    for name, column, message in [
        ("masks", None, "missing: masks"),
        ("k", table["k"][:3], "k should be int16"),
        ("largest", table["largest"].astype(np.int8), "largest should be bool"),
    ]:
        changed = {
            key: value for key, value in (table | {name: column}).items() if value is not None
        }
        np.savez(damaged, allow_pickle=False, **changed)
        with pytest.raises(ValueError, match=message):
            LIDC(path=damaged)
