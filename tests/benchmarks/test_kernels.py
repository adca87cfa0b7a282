"""`revgrad bench kernels`: a whole quick run, what it times and its verdicts."""

import argparse
import json
import time

import pytest
import torch

from revgrad import machine
from revgrad.benchmarks.kernels import add_arguments, report
from revgrad.benchmarks.kernels.cases import Case, Plan, cases
from revgrad.benchmarks.kernels.command import plan_of
from revgrad.benchmarks.kernels.run import Row, measure, seconds
from revgrad.cli import main as revgrad

PLAN = Plan(sizes=((1, 4, 6, 6), (1, 2, 4, 4, 4)), matrices=(3, 64), repeats=2, threads=1)


def row(ours=1.0, goal=None, met=None, rivals=None):
    return Row("op", "2x2", "clone", 1e-3, ours, rivals or {}, goal, met)


def test_whole_run(tmp_path, capsys):
    assert revgrad(["bench", "kernels", "--quick", "--output", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("*-kernels-*.json")
    record, page = json.loads(file.read_text()), file.with_suffix(".md").read_text()
    assert record["plan"]["threads"] == record["machine"]["threads"] == 1
    rows = record["rows"]
    assert {r["operator"].split(",")[0] for r in rows} == {
        "norm + leaky ReLU",
        "orthogonal_down",
        "orthogonal_down_exact",
        "orthogonal_up",
        "orthogonal_up_exact",
        "expm_skew",
    }
    assert all(r["ours"] > 0 and r["seconds"] > 0 for r in rows)
    assert all((r["met"] is None) == (r["goal"] is None) for r in rows)
    printed = capsys.readouterr().out
    for text in (printed, page):
        assert "GroupNorm(C, C)" in text and "grouped convolution" in text and "goals met" in text
    assert "capability" in page


def test_the_goals_are_the_issues():
    goals = {
        (c.operator, c.what.split(", ", 1)[1]): c.goal for c in cases(PLAN) if c.goal is not None
    }
    assert goals["norm + leaky ReLU, forward", "float32, contiguous"] == 1.6
    assert goals["norm + leaky ReLU, forward", "bfloat16, channels-last"] == 2.0
    assert goals["norm + leaky ReLU, forward + backward", "float32, channels-last"] == 5
    assert goals["orthogonal_down", "bfloat16, channels-last"] == 1.5
    assert goals["expm_skew, forward", "float32"] == 1
    assert [c.goal for c in cases(PLAN) if c.operator == "expm_skew, forward + backward"] == [
        None,
        3.5,
    ]


def test_contestants_compute_the_same():
    """What is timed must be the same function, or the ratio says nothing."""
    seen = 0
    for case in cases(Plan(((2, 4, 6, 6),), (5,), 1, 1)):
        if "added" in case.operator or "expm" in case.operator:
            continue
        results = [run() for run in (case.ours, *case.rivals.values())]
        for other in results[1:]:
            pairs = (
                zip(results[0], other, strict=True)
                if isinstance(other, tuple)
                else [(results[0], other)]
            )
            for a, b in pairs:
                scale = b.abs().max()
                assert (a - b).abs().max() <= 0.05 * scale
                seen += 1
    assert seen > 20


def test_time_counts_calls_and_the_shortest_round():
    assert 0.005 <= seconds(lambda: time.sleep(0.005), 2, "cpu") < 0.5
    case = Case("op", "", "clone", lambda: time.sleep(0.01), lambda: time.sleep(0.02), goal=1.5)
    found = measure(case, PLAN)
    assert found.ours > 1 and found.met is (found.ours <= 1.5)


def test_a_rival_that_fails_leaves_a_gap():
    def fail():
        raise RuntimeError("not for this type")

    found = measure(Case("op", "", "clone", int, int, {"eager": fail}), PLAN)
    assert found.rivals == {"eager": None} and "| -" in report.tables([found])
    with pytest.raises(RuntimeError):
        measure(Case("op", "", "clone", int, fail), PLAN)


def test_the_report_names_what_is_missed():
    text = report.tables([row(1.5, 1.6, True), row(2.0, 1.6, False), row(3.0)])
    assert "1 of 2 goals met" in text and "- not met: op, 2x2" in text and "**no**" in text


def test_files_are_named_by_date_and_threads(tmp_path):
    page = report.write(PLAN, [row()], machine.facts(), tmp_path)
    assert page.name.endswith("-1-thread.md") and page.with_suffix(".json").exists()


def test_options():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    plan = plan_of(parser.parse_args(["--sizes", "1x3x8", "--matrices", "7", "--threads", "2"]))
    assert plan == Plan(((1, 3, 8),), (7,), 40, 2)
    for wrong in ("3", "axb", "1x0x3", "1x2"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--sizes", wrong])


@pytest.mark.skipif(torch.cuda.is_available(), reason="only where there is no CUDA")
def test_cuda_is_asked_for_in_vain():
    with pytest.raises(SystemExit, match="no CUDA"):
        revgrad(["bench", "kernels", "--quick", "--device", "cuda"])
