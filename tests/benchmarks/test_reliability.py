"""The reliability battery: every case on every network, against plain autograd."""

import sys

import pytest

from revgrad import ReversibleError, ReversibleSequence
from revgrad.benchmarks.reliability import setup as module
from revgrad.benchmarks.reliability.cases import CASES, Case
from revgrad.benchmarks.reliability.networks import build_plain, build_revgrad
from revgrad.benchmarks.reliability.setup import MismatchError, Setup, expect_equal

ROWS = [pytest.param(c, kind, id=f"{c.name}-{kind}") for c in CASES for kind in c.kinds]


@pytest.mark.parametrize(("case", "kind"), ROWS)
def test_right_or_a_clear_error(case: Case, kind: str):
    setup = Setup(build_revgrad, kind)
    if not case.refuses:
        case.run(setup)
        return
    with pytest.raises(ReversibleError) as caught:
        case.run(setup)
    assert "layer " in str(caught.value) or "the output of " in str(caught.value)


# What differs in exact arithmetic: its results are those of the rounded function, and these take
# the streams for floats.
NOT_EXACT = {
    "torch.func.grad over the network": "do not know fixed-point",
    "torch.func.vmap over the network": "do not know fixed-point",
    "forward-mode differentiation": "do not know fixed-point",
    "the output changed in place": None,  # the tape has streams of its own
}


@pytest.mark.parametrize(("case", "kind"), ROWS)
def test_right_or_a_clear_error_in_exact_arithmetic(case: Case, kind: str, monkeypatch):
    """The function differs from the plain one by what its grid rounds off, and by nothing else."""

    def build(plan):
        net = build_revgrad(plan)
        for sequence in net.modules():
            if isinstance(sequence, ReversibleSequence):
                sequence.arithmetic = "exact"
                sequence.fraction_bits = 18 if "a buffer that" in case.name else 24
        return net

    def loose(expected, found, tolerance=0.0):
        expect_equal(expected, found, max(tolerance, 1e-4))

    monkeypatch.setattr(module, "expect_equal", loose)
    for cases in {sys.modules[c.run.__module__] for c in CASES}:
        if hasattr(cases, "expect_equal"):
            monkeypatch.setattr(cases, "expect_equal", loose)
    message = NOT_EXACT.get(case.name, "" if case.refuses else None)
    if message is None:
        case.run(Setup(build, kind))
        return
    with pytest.raises(ReversibleError, match=message):
        case.run(Setup(build, kind))


def test_the_battery_can_fail():
    """A network whose gradients are slightly wrong is found, and so is one of other outputs."""
    import torch
    from torch import nn

    class Wrong(nn.Module):
        def __init__(self, module: nn.Module, backward: bool):
            super().__init__()
            self.module = module
            self.backward = backward

        def forward(self, x, *side, **kwargs):
            y = self.module(x, *side, **kwargs)
            return y + 1e-6 * (x - x.detach() if self.backward else x)

    for backward in (True, False):
        setup = Setup(lambda plan, b=backward: Wrong(build_plain(plan), b), "sequence")
        with pytest.raises(MismatchError):
            next(c for c in CASES if c.name == "float64 gradients").run(setup)
    with pytest.raises(MismatchError):
        expect_equal([torch.ones(2)], [torch.full((2,), float("nan"))])


def test_plain_autograd_is_right_where_revgrad_refuses_by_design():
    """Those rows are the documented limits: none of them hides behind a fault of plain autograd."""
    for case in CASES:
        if case.refuses and "in place" in case.name:
            case.run(Setup(build_plain, "sequence"))
