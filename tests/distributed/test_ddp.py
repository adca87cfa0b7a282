"""Data parallelism in two processes: the gradients of one, reduced while the backward pass runs."""

import pytest

from .ddp_cases import CASES
from .pair import expect_ok, run_pair


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_pair("tests.distributed.ddp_cases", tmp_path_factory.mktemp("ddp"))


@pytest.mark.parametrize("case", CASES)
def test_case(results, case):
    expect_ok(results, case)
