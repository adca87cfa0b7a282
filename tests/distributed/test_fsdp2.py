"""FSDP2 in two processes: the gradients and weights of one."""

import pytest

from .fsdp2_cases import CASES
from .pair import expect_ok, run_pair


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_pair("tests.distributed.fsdp2_cases", tmp_path_factory.mktemp("fsdp2"))


@pytest.mark.parametrize("case", CASES)
def test_case(results, case):
    expect_ok(results, case)
