import json

import pytest
import torch

from revgrad.cli import main
from revgrad.models.data.organs import ORGANS


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    threads = torch.get_num_threads()
    assert main(["demo", "--quick", "--threads", "1", "--seed", "3", "--output", str(folder)]) == 0
    assert torch.get_num_threads() == threads
    return folder


@pytest.fixture(scope="module")
def facts(report):
    return json.loads((report / "demo.json").read_text())


def test_both_ways_train_alike_up_to_rounding(facts):
    plain, reversible = facts["losses"]["plain"], facts["losses"]["reversible"]
    assert len(plain) == len(reversible) == facts["configuration"]["steps"]
    assert reversible == pytest.approx(plain, abs=1e-4)
    assert 0 <= facts["largest_loss_distance"]["reversible"] < 1e-4
    assert 0 < facts["largest_loss_distance"]["nudged"] < 1e-4
    assert facts["same_prediction"]["reversible"] > 0.99
    for errors in facts["gradient_errors"].values():
        assert 0 < errors["plain"] < 1e-4 and 0 < errors["reversible"] < 1e-4


def test_reversible_training_takes_less_memory(facts):
    assert 0 < facts["memory_ratio"] < 0.6
    memory = facts["memory"]
    parts = ("kept_for_backward", "workspace", "scratch", "parameters", "gradients", "other")
    for report in memory.values():  # the page's table is complete
        assert sum(report[part] for part in parts) == report["peak"]
    ratio = memory["reversible"]["peak"] / memory["plain"]["peak"]
    assert facts["memory_ratio"] == pytest.approx(ratio)


def test_figures_come_with_what_they_depend_on(facts):
    machine = facts["machine"]
    assert machine["cpu"] and machine["date"] and machine["threads"] == 1
    assert machine["torch"] == str(torch.__version__)
    assert facts["configuration"]["seed"] == 3
    assert facts["time_ratio"] > 0 and facts["parameters"] > 0
    assert set(facts["dice"]["plain"]) == set(ORGANS)


def test_page_shows_the_measured_figures(report, facts):
    page = (report / "report.md").read_text()
    assert f"{facts['memory_ratio']:.2f} times the memory" in page
    assert f"{facts['largest_loss_distance']['reversible']:.1e}" in page
    assert "not ground truth" in page
    assert all(f"| {organ} " in page for organ in ORGANS)


def test_page_shows_the_pictures(report):
    pytest.importorskip("matplotlib")
    for name in ("training.png", "predictions.png"):
        assert f"({name})" in (report / "report.md").read_text()
        assert (report / name).read_bytes().startswith(b"\x89PNG")


def test_samples_stand_beside_the_radiologists(report):
    pytest.importorskip("matplotlib")
    found = json.loads((report / "samples.json").read_text())
    assert (
        found["data"] == "LIDC masks, synthetic images, cut to 32 x 32"
        and found["network"] == "RevPHiSeg"
    )
    assert found["configuration"]["seed"] == 3 and len(found["losses"]) == 2
    assert found["ged"]["before training"] > 0 and len(found["ged"]) == 6
    assert (report / "samples.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_is_a_report_and_a_hint(tmp_path, capsys, no_matplotlib):
    assert main(["demo", "--quick", "--steps=2", "--threads=1", "--output", str(tmp_path)]) == 0
    assert "pip install 'revgrad[train]'" in capsys.readouterr().out
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["demo.json", "report.md", "samples.json"]
    assert ".png" not in (tmp_path / "report.md").read_text()


def test_bad_choices_are_refused_before_training(tmp_path, capsys):
    for choice in (["--steps", "0"], ["--device", "meta"], ["--device", "nonsense"]):
        with pytest.raises(SystemExit):
            main(["demo", *choice])
        assert choice[0] in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["demo", "--quick", "--output", str(tmp_path / "file")]) == 1
    assert "cannot make the folder" in capsys.readouterr().err
