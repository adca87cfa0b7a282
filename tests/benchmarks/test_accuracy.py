"""`revgrad bench accuracy`: a whole quick run, its oracles, its verdicts and its report."""

import argparse
import json
import re
from functools import partial

import pytest
import torch
from torch import nn

from revgrad import machine
from revgrad.benchmarks import peers, plot
from revgrad.benchmarks.accuracy import add_arguments, goal, report, run
from revgrad.benchmarks.accuracy.command import main, plan_of
from revgrad.benchmarks.accuracy.networks import NETWORKS, PRECISIONS
from revgrad.benchmarks.accuracy.problem import Gradients, Problem
from revgrad.benchmarks.accuracy.rounded import Rounded
from revgrad.benchmarks.accuracy.run import (
    EXACT,
    FAILED,
    FLOAT,
    LEFT_THE_RANGE,
    MEASURED,
    NOT_FINITE,
    NOT_INSTALLED,
    VARIANTS,
    Outcome,
    Row,
)
from revgrad.benchmarks.accuracy.settings import Plan
from revgrad.benchmarks.peers import ADAPTORS
from revgrad.cli import main as revgrad
from revgrad.optional import MissingExtraError

OWN = ("plain", FLOAT, EXACT)


def small(**options):
    defaults = {
        "variants": OWN,
        "networks": ("norm",),
        "precisions": ("float32",),
        "depths": (20,),
        "seeds": 1,
        # Smaller ones may show no drift under autocast: rounding to bfloat16 hides most of it.
        "size": 16,
    }
    return Plan(**{**defaults, **options})


def parsed(*options):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(options)


# --- a whole run ----------------------------------------------------------------------------------


@pytest.fixture
def result(tmp_path, monkeypatch, capsys):
    """A quick run without any of the other libraries: record, page, output."""
    monkeypatch.setattr(peers, "find_spec", lambda package: None)
    assert revgrad(["bench", "accuracy", "--quick", "--output", str(tmp_path / "out")]) == 0
    (record,) = (tmp_path / "out").glob("*-accuracy-*.json")
    return json.loads(record.read_text()), record.with_suffix(".md"), capsys.readouterr()


def test_whole_run(result):
    record, page, output = result
    kinds = len(NETWORKS) * len(PRECISIONS) * len(record["plan"]["depths"])
    assert len(record["rows"]) == kinds * len(VARIANTS)
    for row in record["rows"]:
        total = row["total"]
        if row["variant"] not in OWN:
            assert total["status"] == NOT_INSTALLED
            assert total["reason"].endswith("not installed; it comes with: make peers")
            continue
        assert total["status"] == MEASURED
        assert len(row["seeds"]) == 1
        if row["variant"] != FLOAT:
            assert total["same"] == {"weights": 0, "input": 0}
        assert 1e-8 < total["float64"]["weights"] < 0.1
    drift = {
        (row["network"], row["precision"]): row["total"]["same"]["weights"]
        for row in record["rows"]
        if row["variant"] == FLOAT and row["depth"] == 20
    }
    assert all(drift["norm", precision] > 1e-7 for precision in ("float32", "bfloat16"))

    assert {"date", "cpu", "threads", "load", "torch"} <= record["machine"].keys()
    for text in (page.read_text(), output.out):
        equal = re.findall(r"^\| revgrad-exact \| 0 +\| 0 +\|$", text, re.MULTILINE)
        assert len(equal) == len(NETWORKS) * len(PRECISIONS)
        assert "| memcnn        | not installed | not installed |" in text
        assert text.count("- memcnn: memcnn not installed; it comes with: make peers") == 1
        assert f"same function: met, {kinds} of {kinds} points to the bit" in text
    assert record["goals"][0] in page.read_text()
    assert f"{kinds}/{kinds} no-norm-0.3, bfloat16, depth 20" in output.err
    assert page.with_suffix(".png").exists() == (f"({page.stem}.png)" in page.read_text())


# --- what is compared -----------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("network", "fraction_bits"), [("norm", 12), *((network, 20) for network in NETWORKS)]
)
def test_exact_mode_equals_plain_autograd_of_the_rounded_function(
    network, precision, fraction_bits
):
    plan = small(fraction_bits=fraction_bits)
    found = run.outcomes(plan, Problem(plan, network, precision, 20, 0))
    assert found[EXACT].same == {"weights": 0, "input": 0}
    # It ran in a precision of its own, and not in float64.
    assert found[EXACT].float64 is not None
    assert found[EXACT].float64["weights"] > 1e-7


@pytest.mark.parametrize("precision", PRECISIONS)
def test_float_mode_drifts(precision):
    """At the depth at which exact mode is found equal; so equality there is not for nothing."""
    plan = small()
    found = run.outcomes(plan, Problem(plan, "norm", precision, 20, 0))
    assert found[FLOAT].same is not None
    assert min(found[FLOAT].same.values()) > 1e-7


def test_another_rounding_is_found():
    """The comparison tells one grid from the next."""
    plan = small()
    problem = Problem(plan, "norm", "float32", 4, 0)
    exact = problem.gradients(partial(peers.revgrad_exact, fraction_bits=20))
    for bits, equal in ((20, True), (21, False)):
        errors = exact.errors(problem.gradients(partial(Rounded, fraction_bits=bits)))
        assert (max(errors.values()) == 0) == equal


def test_the_rounded_function_by_hand():
    """One coupling with steps of 1/2: y1 = x1 + round(f(x2)), y2 = x2 + round(g(y1))."""
    f, g = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)
    for module, weight in ((f, 0.6), (g, -0.3)):
        nn.init.constant_(module.weight, weight)
        nn.init.zeros_(module.bias)
    x = torch.tensor([1.1, 2.0]).view(1, 2, 1, 1).requires_grad_()
    y = Rounded([(f, g)], fraction_bits=1)(x)
    # 1.1 -> 1, f(2) = 1.2 -> 1, y1 = 2; g(2) = -0.6 -> -0.5, y2 = 1.5.
    assert y.flatten().tolist() == [2.0, 1.5]
    y.backward(torch.tensor([1.0, 1.0]).view(1, 2, 1, 1))
    # Rounding has the derivative of the identity: dy1 = 1 + g' = 0.7, dx2 = 1 + 0.7 f'.
    assert x.grad.flatten().tolist() == pytest.approx([0.7, 1.42])
    assert f.weight.grad.item() == pytest.approx(1.4)
    assert g.weight.grad.item() == pytest.approx(2)


def test_a_problem_is_the_same_for_all():
    plan = small()
    first, second = (Problem(plan, "norm", "float32", 4, 3) for _ in range(2))
    plain = ADAPTORS["plain"].wrap
    assert max(first.gradients(plain).errors(second.gradients(plain)).values()) == 0
    other = Problem(plan, "norm", "float32", 4, 4)
    assert first.gradients(plain).errors(other.gradients(plain))["weights"] > 0.1
    # Running it leaves nothing behind, neither gradients nor float64 weights.
    first.gradients_in_float64()
    parameters = [p for pair in first.couplings for module in pair for p in module.parameters()]
    assert all(p.grad is None and p.dtype == torch.float32 for p in parameters)


def test_errors_are_relative_to_the_right_ones():
    right = Gradients(torch.tensor([3.0, 4.0]), torch.tensor([2.0]))
    found = Gradients(torch.tensor([3.0, 5.0]), torch.tensor([1.0]))
    assert found.errors(right) == pytest.approx({"weights": 0.2, "input": 0.5})


# --- what goes wrong ------------------------------------------------------------------------------


def test_streams_that_leave_their_range_are_told_as_such():
    plan = small(fraction_bits=27)
    found = run.outcomes(plan, Problem(plan, "norm", "float32", 50, 0))
    assert found[EXACT].status == LEFT_THE_RANGE
    assert "ReversibleError: layer " in found[EXACT].reason
    assert found[FLOAT].status == MEASURED


class Broken(nn.Module):
    """A way of running couplings that is wrong or fails."""

    def __init__(self, couplings, how):
        super().__init__()
        self.module = ADAPTORS["plain"].wrap(couplings)
        self.how = how

    def forward(self, x):
        if self.how == "raises":
            raise RuntimeError("no\n such thing")
        return self.module(x) * float(self.how)


@pytest.mark.parametrize(
    ("how", "status", "reason"),
    [
        ("raises", FAILED, "RuntimeError: no such thing"),
        ("nan", NOT_FINITE, ""),
        ("1.5", MEASURED, ""),
    ],
)
def test_what_fails_is_shown(how, status, reason, monkeypatch):
    broken = peers.Adaptor(partial(Broken, how=how), "broken")
    monkeypatch.setattr(run, "ADAPTORS", {**ADAPTORS, "revlib": broken})
    monkeypatch.setattr(run, "available", lambda name: peers.Availability())
    plan = small(variants=("revlib",), depths=(4,))
    (row,) = run.run(plan, lambda text: None)
    assert (row.total.status, row.total.reason) == (status, reason)
    if status == MEASURED:
        assert row.total.same is not None
        assert row.total.same["weights"] == pytest.approx(0.5, rel=1e-5)
    assert f"| revlib  | {'5.0e-01' if status == MEASURED else status}" in report.tables(
        plan, [row]
    )


def test_a_seed_without_a_figure_is_not_hidden_by_the_median():
    fine = Outcome(same={"weights": 1.0, "input": 2.0}, float64={"weights": 3.0, "input": 4.0})
    lost = Outcome(LEFT_THE_RANGE, "too large")
    assert run.combined([fine, fine, lost]) is lost
    assert run.combined([fine]) == fine


# --- verdicts -------------------------------------------------------------------------------------


def row(variant, depth, same, float64, *, seeds=(), network="norm", status=MEASURED):
    def outcome(same):
        if status != MEASURED:
            return Outcome(status)
        return Outcome(same={"weights": same}, float64={"weights": float64})

    total = outcome(same)
    return Row(network, "float32", variant, depth, total, [total, *map(outcome, seeds)])


def test_goals_that_are_met():
    rows = [
        row(EXACT, 10, 0, 1.5e-6),
        row(FLOAT, 10, 1e-7, 1e-6),
        row(EXACT, 50, 0, 2e-6),
        row(FLOAT, 50, 1e-7, 4e-6),
        row(EXACT, 500, 0, 2e-6),
        row(FLOAT, 500, 0, 0, status=NOT_FINITE),
        row(EXACT, 10, 0, 3e-6, network="no-norm-0.1"),
        row(FLOAT, 10, 0, 1e-6, network="no-norm-0.1"),
    ]
    same, most, deep, elsewhere = goal.verdicts(rows)
    assert same.endswith("same function: met, 4 of 4 points to the bit")
    assert "at every depth: met, 3 of 3 points; worst 1.5 (norm in float32, depth 10)" in most
    assert deep.endswith("from depth 50 on: met; worst 0.5 (norm in float32, depth 50)")
    assert "NOT met, 0 of 1 points" in elsewhere
    assert elsewhere.endswith("beyond it no-norm-0.1 in float32 at 10")


def test_goals_that_are_missed():
    rows = [
        row(EXACT, 10, 0, 3e-6, seeds=[0, 1e-9]),  # the median is 0, but one network is not
        row(FLOAT, 10, 1e-7, 1e-6),
        row(EXACT, 50, 0, 1e-6),
        row(FLOAT, 50, 1e-7, 1e-6),
        row(EXACT, 100, 0, 0, status=LEFT_THE_RANGE),
        row(FLOAT, 100, 1e-7, 1e-6),
    ]
    same, most, deep = goal.verdicts(rows)
    assert "NOT met, 1 of 2 points to the bit; largest error 1.0e-09; left the range at 1" in same
    assert "NOT met, 1 of 2 points; worst 3 (norm in float32, depth 10)" in most
    assert "NOT met; worst 1 (norm in float32, depth 50)" in deep


def test_nothing_measured_meets_no_goal():
    (same,) = goal.verdicts([row(EXACT, 10, 0, 0, status=LEFT_THE_RANGE)])
    assert "NOT met, 0 of 0 points" in same
    assert list(goal.verdicts([row("plain", 10, 0, 1)])) == []


# --- options and files ----------------------------------------------------------------------------


def test_default_plan():
    depths = (10, 20, 50, 100, 200, 500)
    assert plan_of(parsed()) == Plan(VARIANTS, tuple(NETWORKS), tuple(PRECISIONS), depths, 3)


def test_quick_gives_way_to_what_is_given():
    options = ("--depths", "8", "8", "--seeds", "2", "--variants", EXACT, "--fraction-bits", "16")
    plan = plan_of(parsed("--quick", *options))
    assert (plan.depths, plan.seeds, plan.variants) == ((8,), 2, (EXACT,))
    assert plan.fraction_bits == 16
    assert plan.size == 6


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_there():
    with pytest.raises(SystemExit, match="no CUDA device"):
        main(parsed("--device", "cuda"))


def test_files(tmp_path):
    pytest.importorskip("matplotlib")
    plan = small(variants=(FLOAT, EXACT, "revlib", "memcnn"), depths=(10, 20), fraction_bits=16)
    statuses = {"revlib": NOT_INSTALLED, "memcnn": NOT_FINITE}
    rows = [
        row(variant, depth, 0 if variant == EXACT else 1e300, 1e-6, status=status)
        for variant in plan.variants
        for status in [statuses.get(variant, MEASURED)]
        for depth in plan.depths
    ]
    page = report.write(plan, rows, machine.facts(), tmp_path / "new")
    assert "-accuracy-16-bits-" in page.stem
    assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert f"]({page.stem}.png)" in page.read_text()
    assert "multiples of 2**-16" in page.read_text()


def test_without_matplotlib(tmp_path, monkeypatch, capsys):
    def missing(width, height, extra):
        raise MissingExtraError("matplotlib is not installed")

    monkeypatch.setattr(plot, "empty_figure", missing)
    plan = small(variants=(EXACT,))
    page = report.write(plan, [row(EXACT, 20, 0, 1e-6)], machine.facts(), tmp_path)
    assert capsys.readouterr().out == "No picture: matplotlib is not installed\n"
    assert ".png" not in page.read_text()
