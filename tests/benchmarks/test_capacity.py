"""`revgrad bench capacity`: the search, both judges, and a whole run that estimates."""

import argparse
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from revgrad.benchmarks import capacity
from revgrad.benchmarks.capacity import add_arguments, judges, report, run
from revgrad.benchmarks.capacity.command import main, settings_of
from revgrad.benchmarks.capacity.judges import Estimate, Trial
from revgrad.benchmarks.capacity.run import Row
from revgrad.benchmarks.capacity.settings import METHODS, Question, Settings
from revgrad.benchmarks.capacity.sizes import guess_from, largest, parse_bytes
from revgrad.benchmarks.peers import ADAPTORS, Availability
from revgrad.cli import main as revgrad

BATCH = Question("batch of 2D images, 64x64", 2, 1, 64)
PATCH = Question("side of a 3D patch", 3, 8)
TINY = Settings(
    budget=60 * 2**20,
    channels=4,
    depth=2,
    dtype="float32",
    device="cpu",
    methods=("plain", "revgrad"),
    questions=(BATCH, PATCH),
    repeats=3,
)


def parsed(*options):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(options)


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("12GB", 12 * 10**9),
        ("24GiB", 24 * 2**30),
        ("800MB", 8 * 10**8),
        (" 1.5 gib ", 3 * 2**29),
        ("512 KiB", 2**19),
        ("7b", 7),
        ("2TB", 2 * 10**12),
    ],
)
def test_sizes_of_memory(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["12", "GB", "12 G", "-3GB", "1e9B", "12GB/s", "", "1,5GB"])
def test_what_is_no_size_of_memory(text):
    with pytest.raises(argparse.ArgumentTypeError, match="number and a unit, such as 12GB"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["0GB", "0.1B"])
def test_no_memory(text):
    with pytest.raises(argparse.ArgumentTypeError, match="no memory at all"):
        parse_bytes(text)


@given(st.integers(0, 3000), st.integers(-5, 4000), st.integers(1, 2000))
def test_the_largest_is_found_from_any_guess(true, guess, limit):
    asked = []

    def fits(size):
        assert 1 <= size <= limit
        asked.append(size)
        return size <= true

    assert largest(fits, guess, limit) == min(true, limit)
    assert len(asked) == len(set(asked))
    assert len(asked) <= 2 * 12 + 2


@pytest.mark.parametrize(("guess", "most"), [(1000, 2), (999, 4), (1001, 2), (990, 9)])
def test_a_good_guess_needs_few_questions(guess, most):
    asked = []
    assert largest(lambda size: asked.append(size) or size <= 1000, guess) == 1000
    assert len(asked) <= most


def test_guess_is_where_the_line_meets_the_budget():
    peak = {size: 100 + 7 * PATCH.volume(size) for size in (1, 2)}
    budget = 100 + 7 * PATCH.volume(9) + 1
    assert guess_from(peak.__getitem__, PATCH.volume, budget) == 9
    assert guess_from(lambda size: 5, PATCH.volume, budget) == 2  # no slope, no knowledge


def test_shapes():
    assert BATCH.shape(5) == (5, 1, 64, 64) and BATCH.volume(5) == 20_480
    assert PATCH.shape(3) == (1, 1, 24, 24, 24) and PATCH.volume(3) == 24**3


# --- judges ---------------------------------------------------------------------------------------


def test_estimated_sizes_are_the_largest():
    for question in TINY.questions:
        row = run._row("plain", question, TINY)
        assert row.status == "estimated" and row.reason == ""
        size = row.size // question.unit
        judge = Estimate("plain", question, TINY)
        assert judge.fits(size) and not judge.fits(size + 1)
        assert row.peak == judge.peak(size) <= TINY.budget
        assert row.voxels == question.volume(size)
        assert row.seconds is row.images_per_second is None


def test_reversible_takes_more():
    deep = replace(TINY, depth=6, budget=50 * 2**20)
    sizes = {method: run._row(method, BATCH, deep).size for method in ("plain", "revgrad")}
    assert sizes["plain"] * 1.5 < sizes["revgrad"]


class Limited:
    """Stands for a step on a GPU with room for seven samples."""

    def __init__(self, method, question, settings, size):
        self.size = size

    def __call__(self):
        if self.size > 7:
            raise torch.OutOfMemoryError("CUDA out of memory.")


def test_a_trial_on_the_cpu(monkeypatch):
    """The logic of the GPU's path, on real steps."""
    trial = Trial("revgrad", BATCH, TINY)
    assert trial.fits(2)
    assert trial.seconds(2) > 0


def test_a_trial_catches_that_memory_does_not_suffice(monkeypatch):
    monkeypatch.setattr(judges, "Step", Limited)
    trial = Trial("plain", BATCH, TINY)
    assert trial.fits(7) and not trial.fits(8)
    assert trial.seconds(8) is None
    assert largest(trial.fits) == 7


def test_other_errors_of_a_trial_are_a_failure(monkeypatch):
    def broken(*_):
        raise RuntimeError("no kernel\nimage")

    monkeypatch.setattr(run, "Estimate", broken)
    row = run._row("plain", BATCH, TINY)
    assert (row.status, row.reason) == ("failed", "RuntimeError: no kernel image")


class Known:
    """A judge that takes what it should: 10 bytes a pixel on top of 1000."""

    def __init__(self, method, question, settings):
        self.question, self.budget = question, settings.budget

    def peak(self, size):
        return 1000 + 10 * self.question.volume(size)

    def fits(self, size):
        return self.peak(size) <= self.budget

    def seconds(self, size):
        return 0.5


def test_figures_of_a_measured_row(monkeypatch):
    monkeypatch.setattr(run, "Trial", Known)
    settings = replace(TINY, budget=1000 + 10 * 4096 * 100 + 40_959, device="cuda")
    row = run._row("plain", BATCH, settings)
    assert (row.status, row.size, row.voxels, row.peak) == ("measured", 100, 409_600, 4_097_000)
    assert row.images_per_second == 200 and row.voxels_per_second == 819_200
    nothing = run._row("plain", BATCH, replace(settings, budget=10))
    assert nothing.size == 0 and nothing.peak is nothing.seconds is None


def test_what_is_missing(monkeypatch):
    assert run._row("revtorch", BATCH, TINY).status == "missing"
    monkeypatch.setattr(run, "available", lambda name: Availability())
    assert run._row("revtorch", BATCH, TINY).reason == "only measured, on a GPU"


@pytest.mark.cuda
def test_a_real_trial():
    settings = replace(TINY, device="cuda", budget=400 * 2**20, channels=32, depth=4)
    question = replace(BATCH, side=128)
    row = run._row("revgrad", question, settings)
    assert row.status == "measured", row.reason
    assert row.size > 0 and row.seconds > 0 and row.peak <= settings.budget
    estimated = run._row("revgrad", question, replace(settings, device="cpu"))
    assert 0.5 < row.size / estimated.size < 2


# --- the command ----------------------------------------------------------------------------------


def test_whole_run(tmp_path, capsys):
    options = ["--depth", "2", "--channels", "4", "--size", "64", "--patch-step", "16"]
    methods = ["--methods", "plain", "revgrad", "--device", "cpu"]
    output = ["--output", str(tmp_path)]
    assert revgrad(["bench", "--memory", "30MB", *options, *methods, *output]) == 0
    (record,) = tmp_path.glob("*-capacity-estimated-*.json")
    rows = json.loads(record.read_text())["rows"]
    assert [row["method"] for row in rows] == ["plain", "revgrad"] * 2
    assert all(row["status"] == "estimated" and row["size"] > 0 for row in rows)
    machine = json.loads(record.read_text())["machine"]
    assert {"date", "cpu", "torch", "revgrad"} <= machine.keys()
    page, printed = record.with_suffix(".md").read_text(), capsys.readouterr()
    assert page.startswith("# What fits into 0.03 GB")
    assert "Nothing was run" in page
    for text in (page, printed.out):
        assert "Largest batch of 2D images, 64x64:" in text
    assert f"4/4 side of a 3D patch, revgrad: {rows[3]['size']} (estimated)" in printed.err


def test_the_budget_is_needed_and_read(capsys):
    for options in ([], ["--memory", "much"]):
        with pytest.raises(SystemExit):
            revgrad(["bench", "capacity", *options])
    assert "such as 12GB, 24GiB" in capsys.readouterr().err


@pytest.mark.parametrize("given", [["--memory=7MB"], ["capacity", "--memory", "7MB"]])
def test_the_command_has_a_short_form(given, monkeypatch):
    seen = []
    monkeypatch.setattr(capacity, "main", lambda args: seen.append(args.memory) or 0)
    assert revgrad(["bench", *given]) == 0
    assert seen == [7_000_000]


def test_default_settings(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = settings_of(parsed("--memory", "12GB"))
    assert settings.device == "cpu" and settings.budget == 12 * 10**9
    assert settings.methods == METHODS
    assert set(ADAPTORS) - set(METHODS) == {
        "offload",
        "compiled",
        "revgrad-compiled",
        "revgrad-one-graph",
    }
    assert [q.shape(1) for q in settings.questions] == [(1, 1, 256, 256), (1, 1, 16, 16, 16)]
    with pytest.raises(SystemExit, match="--device cpu estimates"):
        main(parsed("--memory", "12GB", "--device", "cuda"))
    with pytest.raises(SystemExit, match="--patch-step must be at least 1"):
        settings_of(parsed("--memory", "12GB", "--patch-step", "0"))


def test_a_budget_larger_than_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5, 8 * 10**9))
    assert settings_of(parsed("--memory", "8GB")).device == "cuda"
    with pytest.raises(SystemExit, match="less than the budget"):
        settings_of(parsed("--memory", "12GB"))


def test_tables():
    rows = [
        Row(BATCH.name, "plain", "measured", "", 10, 640, 2**20, 0.1, 100.0, 6.4e6),
        Row(BATCH.name, "revgrad", "measured", "", 40, 2560, 2**21, 0.5, 80.0, 5.1e6),
        Row(BATCH.name, "memcnn", "failed", "RuntimeError: no"),
        Row(BATCH.name, "revlib", "missing", "not installed"),
    ]
    settings = replace(TINY, methods=("plain", "revgrad", "memcnn", "revlib"), questions=(BATCH,))
    lines = report.tables(settings, rows).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    assert cells[2:] == [
        ["plain", "10", "1.0", "1", "100.00", "6.40"],
        ["revgrad", "40", "4.0", "2", "80.00", "5.10"],
        ["memcnn", "failed", "-", "-", "-", "-"],
        ["revlib", "not available", "-", "-", "-", "-"],
    ]
    assert "- memcnn: failed, RuntimeError: no" in lines
