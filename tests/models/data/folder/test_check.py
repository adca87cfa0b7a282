"""`check_folder` lists all that is wrong at once, each with its file."""

import json

import numpy as np
import pytest

from revgrad import cli
from revgrad.models.data import CaseFolder, FolderError, check_folder

SHAPE = (8, 7, 5)
MOVED = ((-0.7, 0, 0, 15), (0, -0.8, 0, -7), (0, 0, 2.5, 100), (0, 0, 0, 1.0))
THICK = ((-0.7, 0, 0, 12), (0, -0.8, 0, -7), (0, 0, 3.0, 100), (0, 0, 0, 1.0))
FLIPPED = ((0.7, 0, 0, 12), (0, -0.8, 0, -7), (0, 0, 2.5, 100), (0, 0, 0, 1.0))
ROUNDED = ((-0.70001, 0, 0, 12), (0, -0.8, 0, -7), (0, 0, 2.5, 100), (0, 0, 0, 1.0))


def test_a_good_folder_has_no_problems(folder, capsys):
    assert check_folder(folder.root) == []
    assert cli.main(["data", "check", str(folder.root)]) == 0
    shown = capsys.readouterr().out
    assert "2 cases in imagesTr, 0 labelled in imagesTs, of 2 patients" in shown
    assert "annotators a case: 2\nspatial_dims: 3, as not all images have a single slice\n" in shown
    size = (
        "size (slices, rows, columns), each axis by itself: smallest 5 x 7 x 8, largest 5 x 7 x 8"
    )
    assert shown.endswith(f"{size}\nno problems\n")


def test_one_is_counted_as_one(tmp_path, folder, capsys):
    for name in ("imagesTr/Tr1_0000", "labelsTr/Tr1_r1", "labelsTr/Tr1_r2"):
        (folder.root / f"{name}.nii.gz").unlink()
    assert "all: 1 case of 1 patient, the user's own files" in CaseFolder(folder.root).title
    assert cli.main(["data", "check", str(folder.root)]) == 0
    assert "1 case in imagesTr, 0 labelled in imagesTs, of 1 patient\n" in capsys.readouterr().out


def test_sizes_and_axes_are_shown(tmp_path, folder, capsys):
    folder.description(annotators=None)
    for file in [*folder.root.glob("*/*.nii.gz")]:
        file.unlink()
    for name, shape in (("wide", (12, 7)), ("high", (8, 9, 1))):
        folder.nifti(f"imagesTr/{name}_0000.nii.gz", np.zeros(shape, np.int16))
        folder.nifti(f"labelsTr/{name}.nii.gz", np.zeros(shape, np.uint8))
    assert cli.main(["data", "check", str(folder.root)]) == 0
    shown = capsys.readouterr().out
    assert "spatial_dims: 2, as all images have a single slice" in shown
    assert "size (rows, columns), each axis by itself: smallest 7 x 8, largest 9 x 12\n" in shown


def test_all_problems_come_at_once(folder, capsys):
    (folder.root / "labelsTr/Tr0_r1.nii.gz").unlink()
    folder.nifti("labelsTr/Tr0_r3.nii.gz", folder.mask(0, 0))
    folder.nifti("labelsTr/Tr1_r1.nii.gz", np.full(SHAPE, 4, np.uint8))
    folder.nifti("labelsTr/Tr1_r2.nii.gz", folder.mask(1, 1), THICK)
    folder.nifti("labelsTr/.Tr9_r1.nii.gz", folder.mask(1, 1))  # what some systems leave behind
    folder.description(numTraining=3, patients={"Tr7": "P"})
    problems = check_folder(folder.root)
    assert [problem.partition(":")[0] for problem in problems] == [
        "dataset.json",
        "labelsTr/Tr0_r1.nii.gz",
        "labelsTr/Tr0_r3.nii.gz",
        "dataset.json",
        "labelsTr/Tr1_r1.nii.gz",
        "labelsTr/Tr1_r2.nii.gz",
    ]
    assert cli.main(["data", "check", str(folder.root)]) == 1
    assert capsys.readouterr().out == "\n".join([*problems, "6 problems\n"])
    with pytest.raises(FolderError) as caught:
        CaseFolder(folder.root)
    assert list(caught.value.problems) == problems[:4]  # what names alone can say


@pytest.mark.parametrize(
    ("file", "array", "affine", "message"),
    [
        ("labelsTr/Tr0_r2", "mask", THICK, "spacing (0.7, 0.8, 3) mm differs from (0.7, 0.8, 2.5)"),
        ("labelsTr/Tr0_r2", "mask", MOVED, "origin (15, -7, 100) mm differs from (12, -7, 100)"),
        ("labelsTr/Tr0_r2", "mask", FLIPPED, "the directions of its axes differ"),
        ("labelsTr/Tr0_r2", "short", None, "shape (8, 7, 4) differs from (8, 7, 5)"),
        ("labelsTr/Tr0_r2", "half", None, "does not declare: 0.5; declared are 0 to 1"),
        ("labelsTr/Tr0_r2", "negative", None, "does not declare: -1;"),
        ("labelsTr/Tr0_r2", "many", None, "does not declare: 2, 3, 4, 5, 6, ...;"),
        ("labelsTr/Tr0_r2", "nan", None, "does not declare: nan;"),
        ("imagesTr/Tr0_0000", "nan", None, "1 of 280 voxels are NaN or infinite"),
        ("imagesTr/Tr0_0000", "four", None, "(8, 7, 5, 2), expected 3 (each channel is a file"),
        ("labelsTr/Tr0_r2", "four", None, "(8, 7, 5, 2), expected 3 (one number a voxel, that of"),
        ("labelsTr/Tr0_r2", "four", None, "argmax over its classes; each annotator is a file"),
        ("imagesTr/Tr0_0000", "colours", None, "has colours"),
    ],
)
def test_wrong_contents_are_named(folder, file, array, affine, message):
    arrays = {
        "mask": np.zeros(SHAPE, np.uint8),
        "short": np.zeros((8, 7, 4), np.uint8),
        "half": np.full(SHAPE, 0.5, np.float32),
        "negative": np.full(SHAPE, -1, np.int16),
        "many": np.arange(280, dtype=np.int16).reshape(SHAPE),
        "nan": np.where(np.arange(280).reshape(SHAPE) == 9, np.nan, 0).astype(np.float32),
        "four": np.zeros((*SHAPE, 2), np.uint8),
        "colours": np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")]),
    }
    extra = {} if affine is None else {"affine": affine}
    folder.nifti(f"{file}.nii.gz", arrays[array], **extra)
    (problem,) = check_folder(folder.root)
    assert problem.startswith(f"{file}.nii.gz: ") and message in problem


def test_an_affine_that_was_rounded_is_the_same(folder):
    folder.nifti("labelsTr/Tr0_r2.nii.gz", folder.mask(0, 1), ROUNDED)
    assert check_folder(folder.root) == []


@pytest.mark.parametrize("content", ["empty", "text", "cut"])
def test_a_damaged_file_is_named(folder, content):
    file = folder.root / "imagesTr/Tr0_0000.nii.gz"
    whole = file.read_bytes()
    file.write_bytes({"empty": b"", "text": b"no image", "cut": whole[: len(whole) // 2]}[content])
    (problem,) = check_folder(folder.root)
    assert problem.startswith("imagesTr/Tr0_0000.nii.gz: cannot be read as NIfTI: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "labels is missing"),
        ({"channel_names": None}, "channel_names is missing"),
        ({"channel_names": {"1": "CT"}}, "numbered from 0 without gaps, not ['1']"),
        ({"labels": {"background": 0, "a": 2}}, "without gaps, not [0, 2]"),
        (
            {"labels": {"background": 0, "a": 1, "ignore": 2}},
            "ignore label, which is not supported",
        ),
        ({"labels": {"background": 0, "a": [1, 2]}}, "regions"),
        (
            {"labels": {"0": "background", "1": "a"}},
            'nnU-Net 1 had it the other way round, names by number: write "labels": '
            '{"background": 0, "a": 1}',
        ),
        ({"labels": {"a": "0"}}, "names by number"),
        (
            {"channel_names": None, "modality": {"0": "CT", "1": "PET"}},
            "modality is nnU-Net 1's, now it is channel_names: write "
            '"channel_names": {"0": "CT", "1": "PET"}',
        ),
        ({"file_ending": ".png"}, "must be one of .nii.gz, .nii, not '.png'"),
        ({"annotators": []}, "at least one"),
        ({"annotators": ["a", "a"]}, "different suffixes"),
        ({"annotators": ["../x"]}, "different suffixes"),
        ({"annotators": {"suffixes": ["a"], "cases": {"Tr0": ["b"]}}}, "'Tr0' ['b']"),
        ({"patients": ["P"]}, "patients must be {case: patient"),
        ({"numTraining": "two"}, "must be a number of cases, not 'two'"),
    ],
)
def test_a_wrong_description_is_named(folder, changes, message):
    folder.description(**changes)
    (problem,) = check_folder(folder.root)
    assert problem.startswith("dataset.json: ") and message in problem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "must be an object"),
        ('{"labels": {}, "labels": {}}', "'labels' stands there twice"),
        (None, "no such file"),
    ],
)
def test_no_description_is_named(folder, text, message):
    file = folder.root / "dataset.json"
    file.unlink() if text is None else file.write_text(text, encoding="utf-8")
    (problem,) = check_folder(folder.root)
    assert problem.startswith("dataset.json: ") and message in problem


@pytest.mark.parametrize("suffixes", [("_r1", "_r2"), ("_reader_1", "_reader_2")])
def test_undeclared_annotators_are_one_hint(folder, suffixes):
    for file in (folder.root / "labelsTr").iterdir():
        file.unlink()
    folder.cases(3, suffixes=suffixes)
    folder.cases(1, part="Ts", suffixes=suffixes)
    folder.description(annotators=None)
    (problem,) = check_folder(folder.root)
    names = [suffix[1:] for suffix in suffixes]
    start = (
        f"dataset.json: declares no annotators, while labels are named CASE_{names[0]} and so on"
    )
    head, _, written = problem.partition(': write "annotators": ')
    assert head == start and json.loads(written) == names
    folder.description(annotators=json.loads(written))
    assert check_folder(folder.root) == []


def test_the_hint_says_who_drew_which_case(folder):
    (folder.root / "labelsTr/Tr0_r2.nii.gz").unlink()
    folder.nifti("labelsTr/Tr1_r1.nii.gz", np.full(SHAPE, 4, np.uint8))
    folder.description(annotators=None)
    hint, contents = check_folder(folder.root)
    assert contents.startswith("labelsTr/Tr1_r1.nii.gz: has labels")
    value = json.loads(hint.partition(': write "annotators": ')[2])
    assert value == {"suffixes": ["r1", "r2"], "cases": {"Tr0": ["r1"]}}
    folder.description(annotators=value)
    assert check_folder(folder.root) == [contents]


def test_a_stranger_beside_labels_of_one_annotator_is_no_annotator(folder):
    for file in (folder.root / "labelsTr").iterdir():
        file.unlink()
    folder.cases(2, suffixes=("",))
    folder.nifti("labelsTr/Tr0_old.nii.gz", folder.mask(0, 0))
    folder.description(annotators=None)
    (problem,) = check_folder(folder.root)
    assert problem.startswith("labelsTr/Tr0_old.nii.gz: is no channel or annotator's label")


def test_several_wrong_keys_come_at_once(folder):
    folder.description(labels=None, file_ending=".png", patients=3)
    assert len(check_folder(folder.root)) == 3


def test_missing_folders_are_named(folder, tmp_path):
    assert check_folder(tmp_path / "absent") == [f"{tmp_path / 'absent'}: no such folder"]
    (folder.root / "labelsTr").rename(folder.root / "labels")
    assert check_folder(folder.root) == ["labelsTr: no such folder"]


def test_another_file_ending_is_explained(folder):
    folder.description(file_ending=".nii")
    assert check_folder(folder.root) == [
        "imagesTr: no image named CASE_0000.nii, as file_ending in dataset.json has it"
    ]


def test_an_image_without_the_number_of_its_channel_is_explained(folder):
    file = folder.root / "imagesTr/Tr0_0000.nii.gz"
    file.rename(file.with_name("Tr0.nii.gz"))
    problem, *labels = check_folder(folder.root)
    assert problem == (
        "imagesTr/Tr0.nii.gz: an image is named CASE_0000.nii.gz, with the number of its channel "
        "at the end"
    )
    assert labels and all("is no channel or annotator's label" in label for label in labels)


def test_a_missing_channel_is_named(folder):
    folder.description(channel_names={"0": "T1", "1": "T2"})
    problems = check_folder(folder.root)
    assert problems == [f"imagesTr/Tr{i}_0001.nii.gz: no such file" for i in range(2)]


def test_a_patient_in_both_parts_is_a_problem(folder):
    folder.cases(1, part="Ts")
    folder.description(patients={"Tr1": "P", "Ts0": "P"})
    assert check_folder(folder.root) == ["patient 'P' is in imagesTr and in imagesTs"]
