"""`revgrad bench sequence`: its parts one by one, and a whole run of a tiny network."""

import argparse
import io
import json
import platform
from dataclasses import replace

import pytest
import torch
from torch import nn

from revgrad import machine
from revgrad.benchmarks import plot
from revgrad.benchmarks.peers import ADAPTORS, Availability, available
from revgrad.benchmarks.progress import Progress
from revgrad.benchmarks.sequence import add_arguments, goal, report, run, tasks
from revgrad.benchmarks.sequence.command import main, plan_of
from revgrad.benchmarks.sequence.process import TaskError, run_task
from revgrad.benchmarks.sequence.run import Row
from revgrad.benchmarks.sequence.settings import Plan, Settings
from revgrad.benchmarks.sequence.workload import Step, couplings
from revgrad.cli import main as revgrad
from revgrad.nn import NormAct
from revgrad.optional import MissingExtraError

TINY = Settings(channels=4, size=6)


def parsed(*options):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(options)


# --- a whole run ----------------------------------------------------------------------------------

CRASHING_PEER = """
import os, signal, sys
print("about to crash", file=sys.stderr, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def result(tmp_path, monkeypatch, capsys):
    """A run in which one peer is missing and another one crashes: record, page, output."""
    (tmp_path / "revtorch.py").write_text(CRASHING_PEER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    missing = Availability("memcnn not installed; it comes with: make peers")
    monkeypatch.setattr(run, "available", lambda n: missing if n == "memcnn" else available(n))
    variants = ["revgrad", "memcnn", "revtorch"]
    options = ["--quick", "--depths", "8", "--threads", "1", "--output", str(tmp_path / "out")]
    assert revgrad(["bench", "sequence", *options, "--variants", *variants]) == 0
    (record,) = (tmp_path / "out").glob("*.json")
    page = record.with_suffix(".md").read_text()
    return json.loads(record.read_text()), page, capsys.readouterr()


@pytest.mark.timeout(120)
def test_whole_run(result):
    record, page, output = result
    rows = {row["variant"]: row for row in record["rows"]}
    assert list(rows) == ["plain", "revgrad", "memcnn", "revtorch"]

    for variant, evaluations in {"plain": 1, "revgrad": 2}.items():
        row = rows[variant]
        assert row["status"] == "measured" and row["reason"] == ""
        assert row["evaluations"] == evaluations
        memory = row["memory"]
        parts = ("parameters", "gradients", "kept_for_backward", "workspace", "scratch", "other")
        assert memory["peak"] == sum(memory[part] for part in parts)
        assert row["above"] * record["activation"] == pytest.approx(
            memory["peak"] - memory["parameters"] - memory["gradients"]
        )
        assert len(row["time"]["wall_rounds"]) == record["plan"]["repeats"] == 2
        assert row["time"]["wall"] > 0
        assert row["growth"] >= 0 and row["unbroken_growth"] >= 0
    assert rows["plain"]["time"]["wall_ratio"] == rows["plain"]["time"]["cpu_ratio"] == 1
    assert rows["revgrad"]["above"] < rows["plain"]["above"]

    assert rows["memcnn"]["status"] == "missing"
    assert "make peers" in rows["memcnn"]["reason"]
    assert rows["memcnn"]["memory"] is rows["memcnn"]["time"] is None
    assert rows["revtorch"]["status"] == "failed"
    assert rows["revtorch"]["reason"] == "its process was killed by SIGKILL: about to crash"

    assert record["plan"]["settings"]["channels"] == 8
    assert {"date", "cpu", "cores", "load", "load_after", "torch"} <= record["machine"].keys()
    for text in (page, output.out):
        assert "| memcnn   | not installed |" in text
        assert "| revtorch | failed        |" in text
        assert "memcnn: memcnn not installed; it comes with: make peers" in text
        assert "revtorch: failed, its process was killed by SIGKILL" in text
    assert "6/6 time, depth 8" in output.err


# --- processes ------------------------------------------------------------------------------------


def test_an_exception_in_the_process_is_told():
    with pytest.raises(TaskError, match="KeyError: 'no-such-variant'"):
        run_task("memory", TINY, depth=2, variant="no-such-variant")


def test_a_failed_time_measurement_leaves_memory(monkeypatch):
    def fail(task, *args, **kwargs):
        if task == "timing":
            raise TaskError("its process was killed by SIGSEGV")
        return 4 if task == "growth" else {"memory": MEMORY, "growth": 5, "evaluations": 1}

    monkeypatch.setattr(run, "run_task", fail)
    (row,) = run.run(Plan(TINY, ("plain",), (2,), 3), lambda text: None)
    assert row.status == "measured" and row.time is None and row.memory == MEMORY
    assert (row.growth, row.unbroken_growth) == (5, 4)
    assert row.reason == "time was not measured: its process was killed by SIGSEGV"


# --- what is measured -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        TINY,
        replace(TINY, spatial_dims=3),
        replace(TINY, channels_last=True),
        replace(TINY, channels_last=True, spatial_dims=3),
        replace(TINY, dtype="bfloat16", batch=2),
    ],
)
def test_step(settings):
    step = Step("revgrad", settings, 4)
    step()
    first = step.x.grad
    step()
    assert first is not None and step.x.grad is not None
    assert torch.equal(step.x.grad, first)  # not accumulated
    assert step.x.shape == settings.shape
    assert step.x.numel() * 4 == settings.activation
    if settings.channels_last:
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        assert step.x.is_contiguous(memory_format=formats[step.x.dim()])
        assert not step.x.is_contiguous()
    assert all(
        p.grad is not None for f, g in step.pairs for p in (*f.parameters(), *g.parameters())
    )


def test_the_network_is_the_same_for_every_variant():
    first, second = (next(couplings(TINY, 4)[1][0].parameters()) for _ in range(2))
    assert torch.equal(first, second)


def test_depth_counts_sub_networks():
    assert [len(couplings(TINY, depth)) for depth in (2, 10)] == [1, 5]


def test_evaluations_are_counted_where_a_library_calls_forward_itself():
    class Sneaky(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, x):
            return self.module.forward(self.module.forward(x))

    ((f, g),) = pairs = couplings(TINY, 2)
    x = torch.randn(1, 2, 6, 6)
    assert tasks._evaluations(lambda: Sneaky(f)(x) + Sneaky(g)(x), pairs) == 2
    assert tasks._evaluations(lambda: None, pairs) is None
    assert not any(module._forward_hooks for module in f.modules())


def test_peak_resident_never_falls():
    before = tasks.peak_resident()
    assert before is not None and before > 2**20
    torch.ones(2**25 // 4).sum()
    after = tasks.peak_resident()
    assert after is not None and after >= before


@pytest.mark.parametrize("variant", ["plain-other-format", "plain-group-other-format"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_other_format(variant, channels_last):
    step = Step(variant, replace(TINY, channels_last=channels_last), 2)
    weight = step.pairs[0][0][0].weight
    for tensor in (step.x, step.dy, weight):
        assert tensor.is_contiguous() is channels_last
        assert tensor.is_contiguous(memory_format=torch.channels_last) is not channels_last


def test_no_variant_changes_the_sub_networks_of_another(monkeypatch):
    """Fusing replaces modules in place: a plain variant beside it must not be timed fused."""
    seen = {}

    def look(steps, repeats, device):
        for name, step in steps.items():
            step()
            seen[name] = [type(m) for f, _ in step.pairs for m in f]
        yield {}

    monkeypatch.setattr(tasks, "in_turns", look)
    list(tasks.timing(TINY, 2, ["plain", "revgrad-fused", "plain-group", "revgrad"], 1))
    stock = [nn.Conv2d, nn.InstanceNorm2d, nn.LeakyReLU]
    assert seen["plain"] == seen["revgrad"] == stock
    assert seen["plain-group"] == [nn.Conv2d, nn.GroupNorm, nn.LeakyReLU]
    assert NormAct in seen["revgrad-fused"]


def test_timing_gives_every_variant_in_every_round():
    rounds = list(tasks.timing(TINY, 2, ["plain", "checkpoint"], 3))
    assert len(rounds) == 3
    for one in rounds:
        assert list(one["wall"]) == list(one["cpu"]) == ["plain", "checkpoint"]


def test_ratios_are_taken_within_a_round():
    rounds = [
        {clock: {"plain": base, "revgrad": base * factor} for clock in ("wall", "cpu")}
        for base, factor in ((1.0, 1.2), (10.0, 1.4), (100.0, 1.3))
    ]
    summary = run.summary("revgrad", rounds)
    assert summary["wall_ratio"] == pytest.approx(1.3)
    assert summary["wall"] == pytest.approx(14)
    assert summary["cpu_rounds"] == pytest.approx([1.2, 14, 130])


# --- options --------------------------------------------------------------------------------------


def test_default_plan():
    plan = plan_of(parsed("--threads", "1"))
    assert plan == Plan(Settings(threads=1), tuple(ADAPTORS), (10, 20, 40), 7)
    assert plan.variants[0] == "plain"


def test_plain_is_always_there_and_nothing_twice():
    plan = plan_of(parsed("--variants", "revgrad", "plain", "revgrad"))
    assert plan.variants == ("plain", "revgrad")


def test_quick_gives_way_to_what_is_given():
    plan = plan_of(parsed("--quick", "--depths", "6", "--size", "9"))
    assert plan.depths == (6,)
    assert (plan.settings.size, plan.settings.channels) == (9, 8)
    assert "compiled" not in plan.variants


def test_three_dimensions_are_smaller():
    assert plan_of(parsed("--spatial-dims", "3")).settings.shape == (1, 64, 32, 32, 32)


@pytest.mark.parametrize("options", [("--depths", "3"), ("--depths", "0"), ("--channels", "7")])
def test_odd_numbers_are_refused(options, capsys):
    with pytest.raises(SystemExit):
        parsed(*options)
    assert "is not an even number" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_there():
    with pytest.raises(SystemExit, match="no CUDA device"):
        main(parsed("--device", "cuda"))


# --- report ---------------------------------------------------------------------------------------

MIB = 2**20
MEMORY = {
    "peak": 9 * MIB,
    "parameters": MIB,
    "gradients": MIB,
    "kept_for_backward": 2 * MIB,
    "workspace": 2 * MIB,
    "scratch": MIB,
    "other": 2 * MIB,
}
TIME = {"wall": 0.02, "wall_rounds": [0.02], "wall_ratio": 1.25, "cpu": 0.02, "cpu_ratio": 1.3}
PLAN = Plan(Settings(), ("plain", "revgrad", "offload", "memcnn"), (10, 20), 7)
ROWS = [
    row
    for depth in PLAN.depths
    for row in (
        Row(
            "plain",
            depth,
            memory=MEMORY,
            above=1.75,
            growth=5 * MIB,
            unbroken_growth=3 * MIB,
            evaluations=1,
            time=TIME,
        ),
        Row("revgrad", depth, memory=MEMORY, above=1.75, evaluations=2),
        Row("offload", depth, status="failed", reason="killed"),
        Row("memcnn", depth, status="missing", reason="not installed; make peers"),
    )
]


def test_tables():
    text = report.tables(PLAN, ROWS)
    lines = text.splitlines()
    assert "A = 4 MiB" in lines[0]
    assert "| plain   | 9.0 (1.75 A)  | 9.0 (1.75 A)  |" in lines
    assert "| plain   | 1.25 (1.30)   | 1.25 (1.30)   |" in lines
    assert "| revgrad | -             | -             |" in lines
    assert "| plain   | 20.0          | 20.0          |" in lines
    assert "| plain   | 3 (5)         | 3 (5)         |" in lines
    assert lines.count("| memcnn  | not installed | not installed |") == 4
    assert lines.count("| offload | failed        | failed        |") == 4
    assert [line for line in lines if line.startswith("- memcnn: not")] == [
        "- memcnn: not installed; make peers"
    ]
    assert "- offload: failed, killed" in lines
    assert "it needs CUDA" in text


def test_files(tmp_path):
    pytest.importorskip("matplotlib")
    page = report.write(PLAN, ROWS, machine.facts(), tmp_path / "new")
    assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert f"]({page.stem}.png)" in page.read_text()
    record = json.loads(page.with_suffix(".json").read_text())
    assert len(record["rows"]) == 8
    assert record["activation"] == 4 * MIB


def test_without_matplotlib(tmp_path, monkeypatch, capsys):
    def missing(width, height, extra):
        raise MissingExtraError("matplotlib is not installed")

    monkeypatch.setattr(plot, "empty_figure", missing)
    page = report.write(PLAN, ROWS, machine.facts(), tmp_path)
    assert capsys.readouterr().out == "No picture: matplotlib is not installed\n"
    assert not page.with_suffix(".png").exists()
    assert ".png" not in page.read_text()


def test_names_tell_runs_apart():
    facts = {"date": "2026-11-21T00:00:00+00:00", "cpu": "AMD EPYC (Milan)"}
    assert report._name(Settings(), facts) == "2026-11-21-sequence-amd-epyc-milan-1-thread"
    settings = Settings(threads=2, channels_last=True, dtype="bfloat16", spatial_dims=3)
    assert report._name(settings, facts | {"gpu": "NVIDIA H200"}) == (
        "2026-11-21-sequence-3d-bfloat16-channels-last-nvidia-h200-2-threads"
    )


def test_picture_of_nothing_measured():
    pytest.importorskip("matplotlib")
    rows = [Row("plain", 2, status="failed", reason="killed")]
    plot.memory_and_time(Settings(), rows)


def test_machine_is_json_without_a_host_name():
    facts = machine.facts()
    assert json.loads(json.dumps(facts)) == facts
    assert platform.node() not in (facts["cpu"], facts["platform"])


# --- progress -------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_in_a_file_and_on_a_terminal():
    file, terminal = io.StringIO(), Terminal()
    for stream in (file, terminal):
        progress = Progress(2, stream)
        progress.step("one")
        progress.step("two")
        progress.close()
    assert file.getvalue() == "1/2 one\n2/2 two\n"
    assert terminal.getvalue().count("\n") == 1
    assert f"[{'#' * 15:<30}] one" in terminal.getvalue()
    assert f"[{'#' * 30}] two" in terminal.getvalue()


# --- goals ----------------------------------------------------------------------------------------


def test_comparisons_take_the_fastest_of_the_others():
    def row(variant, *seconds):
        return Row(variant, 4, time={"wall_rounds": list(seconds)})

    rows = [row("plain", 9.0, 8.0, 9.0), row("plain-group", 2.0, 4.0, 4.0)]
    rows += [row("revgrad-fused", 3.0, 6.0, 2.0), row("compiled", 1.0, 1.0, 1.0)]
    plan = Plan(TINY, tuple(r.variant for r in rows), (4,), 3)
    lines = [
        [c.strip() for c in line.split("|")[1:-1]]
        for line in goal.comparisons(plan, rows).splitlines()
    ]
    assert lines[0] == ["variant", "against", "4", "goal"]
    assert ["revgrad-fused", "fastest plain", "1.50", "at most 0.95"] in lines
    assert ["revgrad-fused", "plain compiled", "3.00", "at most 1.15"] in lines
    assert not any("float mode" in line for line in lines)
    assert goal.comparisons(plan, rows[:2]) == ""
