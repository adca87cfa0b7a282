"""Cases from folders: what comes out is what the files hold, and what is wrong has a name."""

import json
import pickle
from dataclasses import astuple

import numpy as np
import pytest
import torch

from revgrad.models.data import CaseDataset, CaseFolder, FolderError
from revgrad.models.data.folder.case_folder import fit


def test_a_case_is_what_its_files_hold(folder):
    cases = CaseFolder(folder.root, normalisation="none")
    assert isinstance(cases, CaseDataset) and len(cases) == 2
    assert (cases.classes, cases.in_channels) == (("background", "lesion"), 1)
    case = cases[1]
    assert (case.name, case.patient, case.weights) == ("Tr1", "Tr1", None)
    assert case.image.dtype == torch.float32 and case.annotators.dtype == torch.uint8
    assert (case.image[0].numpy() == folder.image(1).transpose(2, 1, 0)).all()
    for number in range(2):
        assert (case.annotators[number].numpy() == folder.mask(1, number).transpose(2, 1, 0)).all()
    assert case.facts["spacing"] == pytest.approx((2.5, 0.8, 0.7))
    assert np.allclose(
        case.facts["affine"], [[-0.7, 0, 0, 12], [0, -0.8, 0, -7], [0, 0, 2.5, 100], [0, 0, 0, 1]]
    )


def test_channels_stand_in_the_order_of_their_numbers(folder):
    folder.cases(2, channels=2)
    folder.description(channel_names={"1": "noNorm", "0": "noNorm"})
    image = CaseFolder(folder.root)[0].image
    assert (image[1].numpy() == folder.image(0, 1).transpose(2, 1, 0)).all()


def test_one_annotator_needs_no_declaration(folder):
    for file in (folder.root / "labelsTr").iterdir():
        file.unlink()
    folder.cases(2, suffixes=("",))
    folder.description(annotators=None, file_ending=".nii.gz")
    assert CaseFolder(folder.root)[0].annotators.shape == (1, 5, 7, 8)


def test_uncompressed_files_are_read(tmp_path, folder):
    for file in [*folder.root.glob("*/*.nii.gz")]:
        file.unlink()
    folder.cases(1, ending=".nii")
    folder.description(file_ending=".nii")
    assert len(CaseFolder(folder.root)[0].annotators) == 2


def test_cases_may_lack_annotators_if_declared(folder):
    (folder.root / "labelsTr/Tr1_r1.nii.gz").unlink()
    folder.description(annotators={"suffixes": ["r1", "r2"], "cases": {"Tr1": ["r2"]}})
    cases = CaseFolder(folder.root)
    assert [len(case.annotators) for case in cases] == [2, 1]
    assert (cases[1].annotators[0].numpy() == folder.mask(1, 1).transpose(2, 1, 0)).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_those_of_the_volume(folder, axis):
    volume = CaseFolder(folder.root)[1]
    slices = CaseFolder(folder.root, spatial_dims=2, axis=axis)
    size = volume.image.shape[axis + 1]
    assert len(slices) == 2 * size
    case = slices[size + 3]
    assert torch.equal(case.image, volume.image.select(axis + 1, 3))
    assert torch.equal(case.annotators, volume.annotators.select(axis + 1, 3))
    assert (case.name, case.patient, case.facts["slice"]) == ("Tr1/003", "Tr1", 3)
    spacing = [mm for i, mm in enumerate(volume.facts["spacing"]) if i != axis]
    assert list(case.facts["spacing"]) == spacing


def write_slices(folder, image, mask):
    for case in range(2):
        folder.nifti(f"imagesTr/Tr{case}_0000.nii.gz", image)
        for number in (1, 2):
            folder.nifti(f"labelsTr/Tr{case}_r{number}.nii.gz", mask)


def test_files_of_two_axes_are_one_slice(folder):
    image, mask = folder.image(0)[..., 0], folder.mask(0, 0)[..., 0]
    write_slices(folder, image, mask)
    cases = CaseFolder(folder.root, spatial_dims=2, normalisation="none")
    assert len(cases) == 2 and (cases[1].image[0].numpy() == image.T).all()
    assert (cases[1].annotators.numpy() == mask.T).all()


@pytest.mark.parametrize("end", [(slice(None), slice(None), 0), (..., slice(0, 1))])
def test_a_folder_of_single_slices_is_2d(folder, end):
    write_slices(folder, folder.image(0)[end], folder.mask(0, 0)[end])
    cases = CaseFolder(folder.root, size=16)
    assert cases.spatial_dims == 2 and cases[1].image.shape == (1, 16, 16)
    assert CaseFolder(folder.root, spatial_dims=3)[0].image.shape == (1, 1, 7, 8)


def test_one_volume_makes_a_folder_3d_in_all_parts(folder):
    write_slices(folder, folder.image(0)[..., :1], folder.mask(0, 0)[..., :1])
    folder.cases(1, part="Ts")
    parts = [CaseFolder(folder.root, part) for part in ("train", "val", "test")]
    assert [part.spatial_dims for part in parts] == [3, 3, 3]
    assert [part[0].image.shape[1] for part in parts] == [1, 1, 5]


def test_axes_are_found_out_by_headers_alone(folder, monkeypatch):
    monkeypatch.setattr("revgrad.models.data.folder.nifti.read_nifti", None)
    assert CaseFolder(folder.root).spatial_dims == 3


def test_a_header_that_cannot_be_read_is_named(folder):
    (folder.root / "imagesTr/Tr0_0000.nii.gz").write_bytes(b"no image")
    with pytest.raises(FolderError, match=r"imagesTr/Tr0_0000\.nii\.gz: cannot be read as NIfTI"):
        CaseFolder(folder.root)


def test_min_foreground_counts_what_any_annotator_drew(folder):
    volumes = [case.annotators for case in CaseFolder(folder.root)]
    counts = [int((v[:, k] > 0).any(0).sum()) for v in volumes for k in range(5)]
    least = sorted(counts)[4]
    slices = CaseFolder(folder.root, spatial_dims=2, min_foreground=least)
    assert len(slices) == sum(count >= least for count in counts) < 10
    assert all(int((case.annotators > 0).any(0).sum()) >= least for case in slices)
    with pytest.raises(ValueError, match="lower min_foreground"):
        CaseFolder(folder.root, spatial_dims=2, min_foreground=57)


def test_parts_share_no_patient_and_lose_no_case(folder):
    folder.cases(10)
    patients = {f"Tr{i}": f"P{i // 2}" for i in range(10)}
    folder.description(patients=patients, numTraining=10)
    parts = [CaseFolder(folder.root, split, seed=3) for split in ("train", "val", "test")]
    names = [[case.name for case in part] for part in parts]
    assert sorted(name for own in names for name in own) == sorted(patients)
    own = [set(part.patients) for part in parts]
    assert [len(p) for p in own] == [3, 1, 1] and len(set.union(*own)) == 5
    assert [patients[name] for name in names[0]] == list(parts[0].patients)


def test_labelled_test_images_are_the_test_part(folder):
    folder.cases(5)
    folder.cases(2, part="Ts")
    parts = [CaseFolder(folder.root, split) for split in ("train", "val", "test", None)]
    assert [len(part) for part in parts] == [4, 1, 2, 7]
    assert all(case.name.startswith("Ts") for case in parts[2])


def test_test_images_without_labels_are_left_alone(folder):
    folder.nifti("imagesTs/Ts0_0000.nii.gz", folder.image(0))
    assert len(CaseFolder(folder.root)) == 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("noNorm", lambda x: x),
        ("MR", lambda x: (x - x.mean()) / x.std(correction=0)),
        ("rescale_to_0_1", lambda x: (x - x.min()) / (x.max() - x.min())),
        ("rgb_to_0_1", lambda x: x / 255),
    ],
)
def test_the_name_of_a_channel_decides_on_its_normalisation(folder, name, expected):
    folder.description(channel_names={"0": name})
    raw = torch.from_numpy(folder.image(0).transpose(2, 1, 0).astype(np.float64))
    assert (CaseFolder(folder.root)[0].image[0].double() - expected(raw)).abs().max() < 1e-5


def test_a_constant_image_stays_finite(folder):
    folder.nifti("imagesTr/Tr0_0000.nii.gz", np.full((8, 7, 5), 9, np.int16))
    for name in ("MR", "rescale_to_0_1"):
        folder.description(channel_names={"0": name})
        assert (CaseFolder(folder.root)[0].image == 0).all()


def test_ct_is_normalised_by_the_training_foreground_alone(folder):
    folder.cases(5)
    folder.description(channel_names={"0": "CT"})
    train, val = (CaseFolder(folder.root, split) for split in ("train", "val"))
    assert train.fingerprint == val.fingerprint
    raw = CaseFolder(folder.root, "train", normalisation="none")
    pooled = torch.cat([c.image[0][(c.annotators > 0).any(0)] for c in raw]).double().numpy()
    low, high = np.percentile(pooled, [0.5, 99.5])
    known = val.fingerprint[0]
    expected = (known.low, known.high, known.mean, known.std)
    assert expected == pytest.approx((low, high, pooled.mean(), pooled.std()))
    plain = CaseFolder(folder.root, "val", normalisation="none")[0].image.double()
    wanted = (plain.clamp(low, high) - pooled.mean()) / pooled.std()
    assert (val[0].image.double() - wanted).abs().max() < 1e-6
    given = CaseFolder(folder.root, "val", fingerprint=train.fingerprint)
    assert torch.equal(given[0].image, val[0].image)
    numbers = [list(astuple(channel)) for channel in train.fingerprint]
    again = CaseFolder(folder.root, "val", fingerprint=json.loads(json.dumps(numbers)))
    assert again.fingerprint == train.fingerprint and again.needs_fingerprint
    assert not CaseFolder(folder.root, "val", normalisation="none").needs_fingerprint


def test_size_crops_and_pads_around_the_middle(folder):
    whole = CaseFolder(folder.root)[0]
    case = CaseFolder(folder.root, size=(9, 3, 8))[0]
    assert case.image.shape == (1, 9, 3, 8) and case.annotators.shape == (2, 9, 3, 8)
    assert torch.equal(case.image[:, 2:7], whole.image[:, :, 2:5])
    assert torch.equal(case.annotators[:, 2:7], whole.annotators[:, :, 2:5])
    assert (case.image[:, :2] == whole.image.min()).all() and (case.annotators[:, 7:] == 0).all()


def test_fit_gives_back_what_it_padded():
    array = np.arange(24).reshape(1, 4, 6)
    assert (fit(fit(array, (9, 7)), (4, 6)) == array).all()


def test_the_cache_holds_as_many_volumes_as_it_should(folder, monkeypatch):
    from revgrad.models.data.folder import case_folder

    read = []
    original = case_folder.read_case
    monkeypatch.setattr(
        case_folder, "read_case", lambda files, n: (read.append(files.name), original(files, n))[1]
    )
    for cache, expected in ((1, ["Tr0", "Tr1", "Tr0"]), (None, ["Tr0", "Tr1"])):
        read.clear()
        cases = CaseFolder(folder.root, cache=cache)
        for index in (0, 0, 1, 0):
            _ = cases[index]
        assert read == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "training"}, "'train', 'val', 'test'.*'training'"),
        ({"split": "train"}, "2 patients are too few"),
        ({"spatial_dims": 1}, "spatial_dims must be 2 or 3"),
        ({"axis": 3}, "axis 0, 1 or 2"),
        ({"size": (4, 4)}, r"3 positive integers \(spatial_dims=3\), or one, not \(4, 4\)"),
        ({"normalisation": "ct"}, "'nnunet', 'zscore' or 'none', not 'ct'"),
        ({"fingerprint": ()}, "must have 1 channels"),
        ({"fingerprint": [[1, 2, 3]]}, "low, high, mean and std, four numbers"),
    ],
)
def test_wrong_arguments_are_named(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        CaseFolder(folder.root, **arguments)


def test_no_foreground_to_measure_is_said(folder):
    folder.description(channel_names={"0": "CT"})
    for file in (folder.root / "labelsTr").iterdir():
        folder.nifti(f"labelsTr/{file.name}", np.zeros((8, 7, 5), np.uint8))
    with pytest.raises(ValueError, match="no training case has any foreground"):
        CaseFolder(folder.root)[0]


def test_reading_a_bad_case_names_its_file(folder):
    folder.nifti("labelsTr/Tr1_r2.nii.gz", np.full((8, 7, 5), 3, np.uint8))
    cases = CaseFolder(folder.root)
    assert cases[0].name == "Tr0"
    with pytest.raises(FolderError, match=r"labelsTr/Tr1_r2\.nii\.gz: has labels.*: 3; declared"):
        cases[1]
    with pytest.raises(FolderError, match=r"labelsTr/Tr1_r2\.nii\.gz: has labels.*: 3; declared"):
        CaseFolder(folder.root, spatial_dims=2, min_foreground=1)


def test_files_lists_paths_for_monai(folder):
    files = CaseFolder(folder.root).files()
    assert files[1]["case"] == files[1]["patient"] == "Tr1"
    assert files[1]["image"] == [str(folder.root / "imagesTr/Tr1_0000.nii.gz")]
    assert files[1]["label"] == [str(folder.root / f"labelsTr/Tr1_r{i}.nii.gz") for i in (1, 2)]


def test_a_folder_goes_to_the_processes_of_a_loader(folder):
    cases = CaseFolder(folder.root)
    copy = pickle.loads(pickle.dumps(cases))
    assert torch.equal(copy[1].image, cases[1].image)
