from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revgrad.models.data import split_by_patient
from revgrad.models.data.splits import indices_of_part

GOLDEN = [[1, 2, 4, 5, 6, 7], [0, 8], [3, 9]]

# At least 20 patients, so that no part of a fifth rounds to none; several cases of some.
PATIENTS = st.lists(st.integers(0, 99).map(str), min_size=1, max_size=30).map(
    lambda names: [f"patient {i}" for i in range(20)] + names
)


@settings(max_examples=40)
@given(PATIENTS, st.integers(0, 2**40))
def test_parts_share_no_patient_and_hold_every_case_once(patients, seed):
    parts = split_by_patient(patients, (0.6, 0.2, 0.2), seed=seed)
    assert sorted(index for part in parts for index in part) == list(range(len(patients)))
    assert all(part == sorted(part) for part in parts)
    names = [{patients[index] for index in part} for part in parts]
    assert sum(len(part) for part in names) == len(set(patients))


@settings(max_examples=40)
@given(PATIENTS, st.integers(0, 9), st.randoms(use_true_random=False))
def test_the_part_of_a_patient_depends_neither_on_order_nor_on_its_number_of_cases(
    patients, seed, random
):
    shuffled = [*random.sample(patients, len(patients)), random.choice(patients)]
    sides = []
    for order in (patients, shuffled):
        parts = split_by_patient(order, seed=seed)
        sides.append({order[index]: i for i, part in enumerate(parts) for index in part})
    assert sides[0] == sides[1]


def test_parts_have_their_share_of_the_patients():
    patients = [f"p{i // 3}" for i in range(3000)]
    sizes = [len(part) for part in split_by_patient(patients, (3, 1, 1), seed=5)]
    assert sizes == [1800, 600, 600]


def test_any_number_of_parts_makes_folds():
    folds = split_by_patient([str(i) for i in range(10)], [1] * 5)
    assert Counter(map(len, folds)) == {2: 5}


def test_the_split_stays_what_it_is_between_versions():
    patients = [str(i) for i in range(10)]
    assert split_by_patient(patients, seed=0) == GOLDEN
    assert split_by_patient(patients, seed=1) != GOLDEN


def test_a_part_by_name_and_all_of_them():
    patients = [str(i) for i in range(10)]
    parts = split_by_patient(patients)
    assert [indices_of_part(name, patients) for name in ("train", "val", "test")] == parts
    assert indices_of_part(None, patients) == list(range(10))


@pytest.mark.parametrize("ratios", [(), (1, 0), (1, -1), (1, float("nan")), (1, float("inf"))])
def test_ratios_must_be_positive(ratios):
    with pytest.raises(ValueError, match="ratios must be positive"):
        split_by_patient(["a", "b"], ratios)


def test_too_few_patients_are_named():
    with pytest.raises(ValueError, match="2 patients are too few"):
        split_by_patient(["a", "b", "a"], (0.6, 0.2, 0.2))


@pytest.mark.parametrize(("name", "ratios"), [("dev", (1, 1, 1)), ("val", (1, 1))])
def test_unknown_parts_are_refused(name, ratios):
    with pytest.raises(ValueError, match=f"split must be one of.*{name}"):
        indices_of_part(name, ["a", "b", "c"], ratios)
