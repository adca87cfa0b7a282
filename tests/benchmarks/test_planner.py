"""`revgrad bench planner`: its parts one by one, and a whole run of a tiny network."""

import argparse
import json

import pytest
import torch

from revgrad.benchmarks.planner import add_arguments, report, tasks
from revgrad.benchmarks.planner.command import plan_of
from revgrad.benchmarks.planner.networks import ABOUT
from revgrad.benchmarks.planner.run import Row, summary
from revgrad.benchmarks.planner.settings import Plan
from revgrad.benchmarks.sequence.settings import Settings
from revgrad.cli import main as revgrad

TINY = Settings(channels=8, size=16)


def parsed(*options):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return plan_of(parser.parse_args(options))


@pytest.mark.timeout(300)
def test_whole_run(tmp_path, capsys):
    options = ["--quick", "--size", "16", "--depth", "4", "--budgets", "0", "1", "--threads", "1"]
    variants = ["--variants", "revgrad"]
    output = ["--output", str(tmp_path)]
    assert revgrad(["bench", "planner", *options, *variants, *output]) == 0
    (file,) = tmp_path.glob("*planner*.json")
    record, page = json.loads(file.read_text()), file.with_suffix(".md").read_text()
    rows = {(row["variant"], row["budget"]): row for row in record["rows"]}
    assert list(rows) == [("plain", 1.0), ("revgrad", 0.0), ("revgrad", 1.0)]
    assert all(row["status"] == "measured" and row["reason"] == "" for row in rows.values())
    assert all(len(row["time"]["wall_rounds"]) == 2 for row in rows.values())
    peaks = {key: row["memory"]["peak_without_scratch"] for key, row in rows.items()}
    assert peaks["revgrad", 0.0] < peaks["plain", 1.0]
    shown = capsys.readouterr().out
    for text in (page, shown):
        assert "| revgrad " in text and "What `revgrad.memory.plan` foretold" in text
        assert "From budget to budget the time of revgrad's step" in text


@pytest.mark.parametrize("variant", [name for name in ABOUT if name != "compiled"])
@pytest.mark.parametrize("budget", [0.0, 0.5, 1.0])
def test_all_variants_compute_the_same(variant, budget):
    step, base = tasks.made(TINY, 8, variant, budget), tasks.made(TINY, 8, "plain", 1.0)
    results = []
    for one in (step, base):
        one()
        results.append([one.x.grad, *(p.grad for p in one.module.parameters())])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_memory_grows_with_the_budget():
    for variant in ("checkpoint", "checkpoint-selective"):
        peaks = [tasks.memory(TINY, 8, variant, b)["kept_for_backward"] for b in (0.0, 0.5, 1.0)]
        assert peaks == sorted(set(peaks)), variant
    last, plain = (tasks.memory(TINY, 8, name, 1.0) for name in ("checkpoint", "plain"))
    assert last["peak_without_scratch"] == plain["peak_without_scratch"]
    found = tasks.plan(TINY, 8, 0.5, repeats=1)
    assert set(found["schedule"]) == {"0", "1", "2", "3"}
    peaks = [
        tasks.memory(TINY, 8, "revgrad", 0.5, schedule)["peak_without_scratch"]
        for schedule in ("invert", found["schedule"], "store")
    ]
    assert peaks[0] <= peaks[1] <= peaks[2]


def test_options():
    plan = parsed("--budgets", "0.5", "0", "0.5")
    assert plan.budgets == (0.0, 0.5) and plan.variants == tuple(ABOUT)
    assert (plan.depth, plan.settings.channels, plan.repeats) == (20, 64, 7)
    assert len(parsed().budgets) == 7
    for wrong in (["--budgets", "2"], ["--depth", "3"]):
        with pytest.raises(SystemExit):
            parsed(*wrong)


def test_times_are_the_shortest_by_the_shortest():
    rounds = [
        {"wall": {"a": a, "plain": p}, "cpu": {"a": a, "plain": p}}
        for a, p in ((3.0, 2.0), (2.5, 4.0))
    ]
    assert summary("a", "plain", rounds)["wall_ratio"] == 1.25


def row(budget, wall):
    return Row("revgrad", budget, time={"wall": wall, "wall_ratio": wall, "cpu_ratio": wall})


def test_the_report_says_where_time_rises():
    assert next(report.falls([row(0.0, 2.0), row(1.0, 1.0)])).endswith("falls, each time.")
    text = next(report.falls([row(0.0, 2.0), row(0.5, 2.2), row(1.0, 1.0)]))
    assert "rises by 10.0% at 0.5" in text
    assert not list(report.falls([row(0.0, 2.0)]))


def test_what_failed_is_in_the_tables():
    plan = Plan(TINY, ("compiled",), (0.0,), 4, 1)
    text = report.tables(plan, [Row("compiled", 0.0, "failed", "no compiler")])
    assert "compiled: failed, no compiler" in text
