"""Intervals over patients, against closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from revgrad.models.training import Resampling


def test_one_patient_says_nothing_of_others():
    found = Resampling(["a", "a"]).mean([1.0, 3.0])
    assert found.mean == 2 and math.isnan(found.low) and math.isnan(found.high)


def test_the_interval_is_the_normal_one_for_many_patients():
    values = np.random.default_rng(0).normal(size=400)
    found = Resampling([str(i) for i in range(400)]).mean(values.tolist())
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.mean == pytest.approx(values.mean(), abs=1e-12)
    assert found.high - found.mean == pytest.approx(half, rel=0.08)
    assert found.mean - found.low == pytest.approx(half, rel=0.08)


def test_cases_of_one_patient_do_not_narrow_it():
    values = np.random.default_rng(1).normal(size=50)
    once = Resampling([str(i) for i in range(50)]).mean(values.tolist())
    names = [str(i // 7) for i in range(350)]
    often = Resampling(names).mean(values.repeat(7).tolist())
    assert (often.high - often.low) == pytest.approx(once.high - once.low, rel=0.05)


def test_nan_is_left_out():
    found = Resampling(["a", "b", "c"]).mean([1.0, math.nan, 1.0])
    assert tuple(found) == (1.0, 1.0, 1.0)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9), st.floats(-3, 3))
def test_it_moves_with_the_values(values, shift):
    resampling = Resampling([str(i % 4) for i in range(len(values))], replicates=50)
    one = resampling.mean(values)
    other = resampling.mean([value + shift for value in values])
    assert np.allclose(np.array(other), np.array(one) + shift, atol=1e-9)


def test_wrong_numbers_of_values_are_refused():
    with pytest.raises(ValueError, match="expected 2 values, one a case"):
        Resampling(["a", "b"]).mean([1.0])
    with pytest.raises(ValueError, match="at least one case"):
        Resampling([])
