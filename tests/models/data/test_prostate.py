import pytest
import torch

from revgrad.models.data import CaseDataset, ProstateLike
from revgrad.models.data.prostate_volumes import GLAND_BIAS, number_of_slices, prostate_volume
from revgrad.models.metrics import diversity


@pytest.fixture(scope="module")
def volumes():
    return [prostate_volume(number) for number in range(4)]


def test_volumes_have_the_documented_form(volumes):
    for number, volume in enumerate(volumes):
        assert len(volume.image) == number_of_slices(number)
        assert volume.annotators.shape == (6, *volume.image.shape)
        assert volume.annotators.unique().tolist() == [0, 1, 2]
        assert volume.spacing[0] == 3 and 0.5 <= volume.spacing[1] == volume.spacing[2] <= 0.75
        assert volume.image.min() >= 0 and volume.image.isfinite().all()
        again = prostate_volume(number)
        assert torch.equal(again.image, volume.image)
        assert torch.equal(again.annotators, volume.annotators)


def test_anatomy(volumes):
    for volume in volumes:
        majority = volume.annotators.mode(0).values
        zone, rim = ((majority == label).nonzero().double().mean(0) for label in (1, 2))
        assert zone[1] < rim[1]  # the transition zone lies in front
        voxel = torch.tensor(volume.spacing).prod().item()
        assert 10_000 < (majority > 0).sum().item() * voxel < 80_000  # cubic millimetres
        assert volume.image[majority == 2].mean() > volume.image[majority == 1].mean()


def test_annotators_are_biased_in_all_patients_and_err_besides(volumes):
    areas = torch.stack([volume.annotators.gt(0).flatten(1).sum(1) for volume in volumes]).double()
    relative = areas / areas.mean(1, keepdim=True)
    order = torch.tensor(GLAND_BIAS).argsort()
    assert (relative[:, order[0]] < relative[:, order[-1]] - 0.1).all()
    assert relative.std(0).min() > 0.002


def test_it_is_a_dataset_of_slices():
    dataset = ProstateLike(patients=5)
    assert isinstance(dataset, CaseDataset) and "generated" in dataset.title
    assert len(dataset) == len(dataset.patients) == sum(number_of_slices(i) for i in range(5))
    case = dataset[6]
    assert case.image.shape == (1, 192, 192) and case.image.dtype == torch.float32
    assert case.annotators.shape == (6, 192, 192) and case.annotators.dtype == torch.uint8
    assert case.facts["spacing"] == (0.6, 0.6) and case.patient == dataset.patients[6]
    assert 0.05 < diversity(case.annotators, num_classes=3) < 0.6
    case.image.zero_()
    assert dataset[6].image.any()


def test_images_depend_neither_on_the_part_nor_on_its_seed():
    parts = [ProstateLike(part, patients=5, seed=2) for part in ("train", "val", "test")]
    assert sum(len(part) for part in parts) == len(ProstateLike(patients=5))
    case = parts[1][3]
    everything = ProstateLike(patients=5)
    same = everything[everything.patients.index(case.patient) + 3]
    assert same.name == case.name and torch.equal(same.image, case.image)


def test_size_and_spacing_are_arguments():
    case = ProstateLike(patients=1, size=64, spacing=1.2)[5]
    assert case.image.shape == (1, 64, 64) and case.facts["spacing"] == (1.2, 1.2)


@pytest.mark.parametrize("options", [{"patients": 0}, {"size": 0}, {"spacing": 0.0}])
def test_wrong_arguments_are_named(options):
    with pytest.raises(ValueError, match="must be positive"):
        ProstateLike(**options)
