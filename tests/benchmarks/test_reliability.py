"""The reliability battery: every case on every network, against plain autograd."""

import pytest

from revgrad import ReversibleError
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
