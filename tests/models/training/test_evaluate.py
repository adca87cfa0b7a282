"""What `revgrad evaluate` finds out, prints and draws beside the papers' table."""

import json

import pytest
import torch

from revgrad import cli
from revgrad.machine import facts
from revgrad.models.data import Case, Scenes
from revgrad.models.metrics import ged_limits
from revgrad.models.training import page, pictures
from revgrad.models.training.intervals import Interval
from revgrad.models.training.judge import judge
from revgrad.models.training.references import MAJORITY, RESAMPLED, references
from revgrad.models.training.scores import predictor

SMALL = {"channels": [4, 6], "depth": 1}


def train(folder, model, data="discs", steps=2, **options):
    settings = {"model": model, "data": data, "steps": steps, "batch_size": 2, "validate_every": 2}
    settings |= {"validation_samples": 4, "validation_cases": 2, "output": str(folder), **options}
    flags = []
    for name, value in settings.items():
        text = value if isinstance(value, str) else json.dumps(value)
        flags += ["--" + name.replace("_", "-"), text]
    assert cli.main(["train", *flags]) == 0
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Runs of a U-Net and of a network that draws, evaluated on scenes; their folders."""
    root = tmp_path_factory.mktemp("scenes")
    data = {"count": 4, "size": [32, 32]}
    runs = [
        train(root / "unet", "unet", "scenes", model_options=SMALL, data_options=data),
        train(
            root / "prob", "probabilistic-unet", "scenes", model_options=SMALL, data_options=data
        ),
    ]
    assert cli.main(["evaluate", *map(str, runs), "--samples", "8", "--shown", "2"]) == 0
    return runs


def test_a_unet_is_evaluated_where_the_truth_is_not_known(toys, tmp_path, capsys):
    run = train(tmp_path / "unet", "unet", model_options=SMALL)
    (run / "latest.safetensors").unlink()  # the best is all that is asked for
    threads = torch.get_num_threads()
    assert cli.main(["evaluate", str(run), "--samples", "2", "--threads", "1"]) == 0
    assert torch.get_num_threads() == 1
    torch.set_num_threads(threads)
    assert f"{run}  took" in capsys.readouterr().err  # its progress
    record = json.loads((run / "evaluation.json").read_text())
    assert record["known truth"] == {} and record["scores"][str(run)]["GED² (n=1)"]["mean"] > 0


def test_a_known_truth_is_reported(scenes):
    unet, prob = map(str, scenes)
    record = json.loads((scenes[1] / "evaluation.json").read_text())["known truth"]
    assert record[unet]["normalized by the U-Net"] == pytest.approx(1)
    ged, perfect = record[prob]["GED²"], record[prob]["perfect model"]
    expected = (ged - perfect) / (record[unet]["GED²"] - perfect)
    assert record[prob]["normalized by the U-Net"] == pytest.approx(expected)
    for found in record.values():
        assert sum(found["frequencies"]) == pytest.approx(1) and len(found["frequencies"]) == 32
        assert sum(found["probabilities"]) == pytest.approx(1)
        assert 0 < found["of as many true samples"][0] < found["of as many true samples"][1]
        assert len(found["flipped"]) == len(found["whole"]) == 5
    page = (scenes[0] / "evaluation.md").read_text()
    for words in ("## Known truth", f"with {unet} as the U-Net", "sidewalk as one", "| 31 "):
        assert words in page
    for words in ("excess over their mean", "person whole", "2 steps, 0."):
        assert words in page
    assert "thresholding" not in page and RESAMPLED in page


def test_the_figures_lie_in_each_folder(scenes):
    for run in scenes:
        for name in ("sheet.png", "ged.png", "modes.png", "training.png"):
            assert (run / name).read_bytes().startswith(b"\x89PNG")
        assert not [path for path in run.iterdir() if path.name.startswith(".")]


def test_without_matplotlib_there_is_the_page_and_a_hint(toys, tmp_path, capsys, no_matplotlib):
    run = train(tmp_path / "run", "disc-net")
    assert cli.main(["evaluate", str(run), "--samples", "4"]) == 0
    assert "No figures: matplotlib is not installed; it comes with: pip" in capsys.readouterr().out
    assert (run / "evaluation.md").is_file() and not list(run.glob("*.png"))


def test_runs_of_other_seeds_are_compared_on_one_split(toys, tmp_path, capsys):
    fixed = {"data_options": {"seed": 0}}
    runs = [
        train(tmp_path / "one", "disc-net", steps=1, seed=1, **fixed),
        train(tmp_path / "two", "disc-net", steps=1, seed=2, **fixed),
        train(tmp_path / "three", "disc-net", steps=1, seed=3),
    ]
    few = ["--samples", "1", "--cases", "2", "--shown", "1"]
    assert cli.main(["evaluate", str(runs[0]), str(runs[1]), *few]) == 0
    assert cli.main(["evaluate", str(runs[0]), str(runs[2]), *few]) == 1
    assert "has other data than" in capsys.readouterr().err


def test_few_members_are_compared_at_what_both_have(toys, tmp_path, capsys):
    small = {"channels": [4, 6], "depth": 1, "heads": 3}
    runs = [
        train(tmp_path / "heads", "m-heads", model_options=small),
        train(tmp_path / "net", "disc-net"),
    ]
    assert "m-heads gives 3 samples: validated by 3" in capsys.readouterr().out
    assert cli.main(["evaluate", *map(str, runs), "--samples", "8"]) == 0
    assert "heads gives 3 samples: judged by these" in capsys.readouterr().out
    record = json.loads((runs[0] / "evaluation.json").read_text())
    name, *_ = record["paired differences"]
    assert name.startswith("GED² (n=1): ")
    assert "GED² (n=3)" in record["scores"][str(runs[0])]
    assert record["known truth"] == {}


def test_a_perfect_models_curve_is_its_expectation():
    dataset = Scenes("test", count=2, size=(32, 32))
    found = pictures._perfect(dataset, [0, 1], [1, 4])
    for n in (1, 4):
        limits = [
            ged_limits(case.annotators, case.weights, draws=n, num_classes=12).perfect
            for case in dataset
        ]
        assert found[n] == pytest.approx(float(sum(limits)) / 2)


def test_resampled_annotators_are_near_a_perfect_model():
    dataset = Scenes("test", count=6, size=(32, 32))
    predict = references(dataset, 16, seed=0)[RESAMPLED]
    judged = judge(predict, dataset, range(6), 0, shown=[1, 4])
    assert abs(judged.truth.normalized_ged) < 0.1
    assert [tuple(drawn.shape) for drawn in judged.shown] == [(16, 12, 32, 32)] * 2
    # The third case's draws do not depend on which others there are.
    (alone,) = judge(predict, dataset, [4], 0, shown=[4]).shown
    assert torch.equal(alone, judged.shown[1])


def test_the_majority_of_many_classes_is_one_map():
    dataset = Scenes("test", count=1, size=(32, 32))
    drawn = references(dataset, 3, seed=0)[MAJORITY](dataset[0], 0)
    assert drawn.shape == (3, 12, 32, 32) and torch.equal(drawn[0], drawn[2])
    assert torch.equal(drawn[0].argmax(0), dataset[0].annotators[0].long())  # none flips


def test_pixels_that_nobody_labelled_do_not_count(toys):
    class Ignoring(toys.Discs):
        def __getitem__(self, index):
            case = super().__getitem__(index)
            ignored = torch.zeros(8, 8, dtype=torch.bool)
            ignored[:, 4:] = True
            annotators = case.annotators.masked_fill(ignored, 0)
            return Case(case.image, annotators, case.name, case.patient, facts={"ignored": ignored})

    def halves(case, index):
        """The annotators themselves, and anything where nobody knows."""
        masks = case.annotators.clone()
        masks[:, :, 4:] = index % 2
        return torch.stack([1 - masks, masks], 1).float()

    scores = judge(halves, Ignoring("val"), range(3), 0).scores
    assert [case.values["GED² (n=4)"] for case in scores] == pytest.approx([0, 0, 0], abs=1e-12)


def test_a_predictor_draws_the_same_of_a_case_again(toys):
    predict = predictor(toys.DiscNet(2, 1, 2), 3, seed=5)
    dataset = toys.Discs("val")
    first = predict(dataset[2], 2)
    predict(dataset[0], 0)
    assert torch.equal(predict(dataset[2], 2), first)
    assert (first.sum(1) - 1).abs().max() < 1e-6


@pytest.mark.parametrize("flag", [["--shown", "0"], ["--samples", "0"], ["--seed", "-1"]])
def test_numbers_out_of_range_are_refused(toys, tmp_path, capsys, flag):
    assert cli.main(["evaluate", str(tmp_path), *flag]) == 1
    assert "samples and shown must be at least 1" in capsys.readouterr().err
    assert cli.main(["evaluate", str(tmp_path), "--threads", "-1"]) == 1
    assert "threads must be at least 0" in capsys.readouterr().err


def test_the_page_has_neither_nan_nor_dictionaries():
    nan = float("nan")
    found = {"NCC": Interval(nan, nan, nan), "Dice": Interval(0.5, nan, nan)}
    trained = {"run": "4 steps", "other": "5 steps"}
    settings = {"data": "one patient", "cases": 1, "patients": 1, "trained": trained}
    settings |= {"threads": 0}
    machine = {**facts("cpu"), "threads": 3, "peers": {}}
    text = page.page(settings, machine, {"run": found}, {}, "")
    table = [[cell.strip() for cell in row.split("|")] for row in text.splitlines()]
    assert ["", "NCC", "undefined", ""] in table and ["", "Dice", "0.5", ""] in table
    assert ["", "trained", "run: 4 steps; other: 5 steps", ""] in table
    assert "1 case of 1 patient, means" in text and "peers" not in text and "{" not in text
    assert [row[2] for row in table if row[1:2] == ["threads"]] == ["3"]
    machine["peers"] = {"iunets": "0.1", "memcnn": "1.5.2"}
    assert "| iunets: 0.1; memcnn: 1.5.2 " in page.page(settings, machine, {"run": found}, {}, "")


@pytest.mark.parametrize("which", ["best", "latest"])
def test_a_folder_without_a_run_lacks_the_checkpoint_that_was_asked_for(tmp_path, capsys, which):
    assert cli.main(["evaluate", str(tmp_path), "--checkpoint", which]) == 1
    told = capsys.readouterr().err
    assert (
        told == f"revgrad evaluate: {tmp_path / which}.safetensors: there is no such checkpoint\n"
    )
