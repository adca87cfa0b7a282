"""Two processes of which one hangs: the tests fail, and the suite goes on."""

import time

import pytest

from .pair import expect_ok, run_pair


def test_a_hang_ends(tmp_path):
    start = time.monotonic()
    results = run_pair("tests.distributed.hanging_cases", tmp_path, seconds=6)
    assert time.monotonic() - start < 60
    for case in ("hangs", "after it"):
        with pytest.raises(AssertionError, match="not run"):
            expect_ok(results, case)
