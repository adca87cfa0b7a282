"""`revgrad bench revphiseg`: its parts one by one, and a whole run of tiny networks."""

import argparse
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from revgrad.benchmarks.revphiseg import add_arguments, goal, networks, report, tasks
from revgrad.benchmarks.revphiseg.command import plan_of
from revgrad.benchmarks.revphiseg.figures import PUBLISHED_MB
from revgrad.benchmarks.revphiseg.run import Row, summary
from revgrad.benchmarks.revphiseg.settings import LIDC, PROSTATE, Plan, Point
from revgrad.benchmarks.sequence.settings import Settings
from revgrad.cli import main as revgrad
from revgrad.models import PHiSeg, RevPHiSeg

TINY = Settings(channels=1, size=16, batch=2)
POINT = Point(12)


def parsed(*options):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(options)


def plan(*points, quick=False):
    return Plan(points, tuple(networks.DEFAULT), False, "cpu", 1, 0, quick)


def row(variant, peak, saved, flops=100, wall_ratio=None, point=POINT, scratch=1.0):
    time = None if wall_ratio is None else {"wall": 1.0, "wall_ratio": wall_ratio}
    memory = {"peak_without_scratch": peak, "peak": int((1 + scratch) * peak)}
    return Row(point, variant, memory=memory, saved=saved, flops=flops, parameters=1, time=time)


# --- a whole run ----------------------------------------------------------------------------------


@pytest.mark.timeout(200)
def test_whole_run(tmp_path, capsys):
    options = ["--quick", "--threads", "1", "--repeats", "1", "--variants", "phiseg", "revphiseg"]
    assert revgrad(["bench", "revphiseg", *options, "--output", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("*revphiseg-quick*.json")
    record, page = json.loads(file.read_text()), file.with_suffix(".md").read_text()
    plain, ours = record["rows"]
    assert (plain["variant"], ours["variant"]) == ("phiseg", "revphiseg")
    assert ours["saved"] < 0.5 * plain["saved"]
    assert ours["parameters"] < plain["parameters"]
    for found in (plain, ours):
        assert found["status"] == "measured" and found["reason"] == ""
        assert len(found["time"]["wall_rounds"]) == record["plan"]["repeats"] == 1
    assert {"date", "cpu", "load_after"} <= record["machine"].keys()
    shown = capsys.readouterr().out
    for text in (page, shown):
        assert "revphiseg" in text and "not for --quick" in text


# --- what is measured -----------------------------------------------------------------------------


def test_saved_activations_are_those_of_a_known_network():
    class Known:
        module = nn.Sequential(nn.Linear(3, 5), nn.Tanh())
        x = torch.randn(2, 3)

        def loss(self):
            return self.module(self.x).sum()

    step = Known()
    # The input of the linear layer and the result of tanh; the weight is none.
    assert tasks.saved_activations(step) == step.x.nbytes + 4 * 2 * 5


def test_operations_are_those_of_the_formula_with_repetitions():
    conv = nn.Conv2d(2, 3, 3, padding=1)
    x = torch.randn(1, 2, 8, 8)
    once = 2 * 64 * 3 * 2 * 9
    assert tasks.operations(lambda: conv(x)) == once
    assert tasks.operations(lambda: conv(x).sum().backward()) == 2 * once

    def twice():
        conv(x)
        conv(x).sum().backward()

    assert tasks.operations(twice) == 3 * once


def test_recomputing_is_counted():
    paper, ours, plain = (
        tasks.operations(networks.TrainingStep(name, TINY, 2, True))
        for name in ("revphiseg-paper", "revphiseg", "phiseg")
    )
    forward = tasks.operations(networks.TrainingStep("revphiseg-paper", TINY, 2, True).loss)
    assert 0 < forward < paper / 3
    assert paper != ours and plain > 0


def test_operations_are_in_proportion_to_the_batch():
    step = networks.TrainingStep("revphiseg", TINY, 2, True)
    assert tasks.memory(TINY, "revphiseg", 2, True)["flops"] == tasks.operations(step) > 0


def test_channels_last_is_that_of_images_and_weights():
    layout = {"memory_format": torch.channels_last}
    settings = replace(TINY, channels=3, channels_last=True)
    step = networks.TrainingStep("phiseg", settings, 2, True)
    wide = [p for p in step.module.parameters() if p.ndim == 4 and min(p.shape) > 1]
    assert step.image.is_contiguous(**layout) and not step.image.is_contiguous()
    assert wide and all(p.is_contiguous(**layout) for p in wide)
    options = plan_of(parsed("--channels-last"))
    assert options.settings(POINT).channels_last and not plan_of(parsed()).channels_last


def test_memory_of_a_point_has_all_figures():
    found = tasks.memory(TINY, "revphiseg", 2, True)
    assert found["memory"]["peak_without_scratch"] > found["memory"]["parameters"] > 0
    assert found["saved"] > 0 and found["flops"] > 0
    net = RevPHiSeg(2, 1, 2, (4, 6, 8), 2)
    assert found["parameters"] == sum(p.numel() for p in net.parameters())


def test_the_base_is_stock_and_the_papers_variant_stores_the_glue():
    base, paper, ours = (
        networks.TrainingStep(name, TINY, 3, True).module
        for name in ("phiseg", "revphiseg-paper", "revphiseg")
    )
    assert type(base) is PHiSeg and isinstance(paper, RevPHiSeg)
    saving = [
        {type(m).__name__ for m in net.modules() if getattr(m, "save_memory", False)}
        for net in (base, paper, ours)
    ]
    assert saving[0] == {"PHiSeg"}
    assert saving[1] == {"RevPHiSeg", "ReversibleSequence"}
    assert saving[2] == {"RevPHiSeg", "ReversibleSequence", "Recompute"}


def test_saved_activations_of_the_variants_fall_in_order():
    saved = [
        tasks.saved_activations(networks.TrainingStep(name, TINY, 2, True))
        for name in ("phiseg", "revphiseg-paper", "revphiseg")
    ]
    assert saved[0] > saved[1] > saved[2]


def test_stepping_holds_no_gradients():
    step = networks.TrainingStep("revphiseg-stepping", TINY, 2, True)
    before = [p.detach().clone() for p in step.module.parameters()]
    step()
    assert all(p.grad is None for p in step.module.parameters())
    assert not all(map(torch.equal, before, step.module.parameters()))


# --- options --------------------------------------------------------------------------------------


def test_the_papers_points_are_the_default():
    assert plan_of(parsed()).points == (*LIDC, *PROSTATE)
    assert set(PUBLISHED_MB) <= {*LIDC, *PROSTATE}
    chosen = plan_of(parsed("--batches", "200", "--sizes", "192"))
    assert chosen.points == (Point(200), Point(12, 192, 3))
    assert plan_of(parsed("--repeats", "0")).repeats == 0


def test_wrong_options_are_refused(capsys):
    for options in (["--sizes", "100"], ["--batches", "0"], ["--repeats", "-1"]):
        with pytest.raises(SystemExit):
            parsed(*options)
    assert "multiple of 64" in capsys.readouterr().err


# --- report ---------------------------------------------------------------------------------------


def test_goals_are_judged_as_measured():
    rows = [
        row("phiseg", 1000, 1000, 100),
        row("revphiseg", 301, 250, 70, wall_ratio=0.77),
        row("revphiseg-iso", 500, 331),
    ]
    lines = list(goal.verdicts(plan(POINT), rows))
    assert [": met" in line for line in lines] == [False, False, True, False, True]
    assert "0.301 (at most 0.3)" in lines[1]


def test_published_figures_stand_beside_the_measured_ones():
    rows = [row("phiseg", 1000 * 2**20, 2**20), row("revphiseg", 290 * 2**20, 2**20)]
    text = report.tables(plan(POINT), rows)
    assert "3251 / 2194 MB" in text and "0.675" in text
    assert "1731.7 / 1188.5" in text and "0.686" in text
    assert "290.0 (580.0)" in text and "0.290 (0.290)" in text


def test_shares_with_the_convolutions_scratch_stand_beside_those_without():
    rows = [row("phiseg", 1000, 1, scratch=0.0), row("revphiseg", 300, 1, scratch=0.5)]
    assert "0.300 (0.450)" in report.tables(plan(POINT), rows)
    whole, without, _ = goal.verdicts(plan(POINT), rows)
    assert "Goal, peak by that of phiseg" in whole and "NOT met, 0.450" in whole
    assert "peak without scratch by that of phiseg" in without and ": met, 0.300" in without


def test_a_point_that_failed_is_told():
    failed = Row(POINT, "phiseg", "failed", "its process was killed by SIGKILL")
    text = report.tables(plan(POINT), [failed, row("revphiseg", 2**20, 2**20)])
    assert "killed by SIGKILL" in text
    assert not [line for line in goal.verdicts(plan(POINT), [failed]) if "met" in line]


def test_times_are_the_shortest_rounds():
    rounds = [
        {"wall": {"phiseg": 2.0, "revphiseg": 3.0}, "cpu": {"phiseg": 1.0, "revphiseg": 1.0}},
        {"wall": {"phiseg": 4.0, "revphiseg": 2.5}, "cpu": {"phiseg": 1.0, "revphiseg": 1.5}},
    ]
    found = summary("revphiseg", rounds)
    assert found["wall"] == 2.5 and found["wall_ratio"] == 1.25
    assert found["cpu_ratio"] == 1.0
