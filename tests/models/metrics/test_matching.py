import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from revgrad.models.metrics import hungarian_matched_iou, optimal_assignment
from revgrad.models.metrics.matching import _assign
from revgrad.models.metrics.overlap import iou_distance


@given(st.integers(1, 6), st.integers(0, 2**32 - 1), st.sampled_from(["real", "tied", "negative"]))
@settings(max_examples=150, deadline=None)
def test_equals_the_best_of_all_permutations(size, seed, kind):
    generator = np.random.default_rng(seed)
    cost = generator.normal(size=(size, size))
    if kind == "tied":
        cost = generator.integers(0, 3, size=(size, size))
    if kind == "negative":
        cost = -np.abs(cost) * 1e6
    rows = np.arange(size)
    columns = optimal_assignment(cost)
    assert sorted(columns) == list(rows)
    best = min(cost[rows, list(p)].sum() for p in itertools.permutations(range(size)))
    assert cost[rows, columns].sum() == pytest.approx(best, rel=1e-12, abs=1e-12)


@given(st.integers(2, 60), st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=40, deadline=None)
def test_potentials_prove_the_optimum(size, seed, tied):
    generator = np.random.default_rng(seed)
    cost = generator.random((size, size))
    if tied:
        cost = np.round(cost * 4)
    columns, row, column = _assign(cost)
    assert (row[:, None] + column <= cost + 1e-9).all()
    assert sorted(columns) == list(range(size))
    total = cost[np.arange(size), columns].sum()
    assert total == pytest.approx(row.sum() + column.sum(), abs=1e-9)


@pytest.mark.parametrize("cost", [np.ones((2, 3)), np.array([[np.inf]]), np.array([[np.nan]])])
def test_refuses_what_has_no_assignment(cost):
    with pytest.raises(ValueError, match=r"square|finite"):
        optimal_assignment(cost)


def test_repeats_both_sets_up_to_their_common_multiple(drawn, experts):
    distance = iou_distance(drawn[:2], experts[:3], [1], 1).numpy()
    square = distance.repeat(3, 0).repeat(2, 1)
    best = min(square[range(6), list(p)].mean() for p in itertools.permutations(range(6)))
    found = hungarian_matched_iou(drawn[:2], experts[:3], num_classes=2)
    assert found.item() == pytest.approx(1 - best)


def test_equal_sets_match_in_any_order_and_number(experts):
    for samples in (experts, experts.flip(0), experts.repeat(3, 1, 1), experts.repeat(4, 1, 1)):
        assert hungarian_matched_iou(samples, experts, num_classes=2).item() == pytest.approx(1)


def test_by_hand_with_each_convention_for_empty(drawn, experts):
    # Best: the equal discs (IoU 1), the empty masks, and the other disc with nothing.
    samples, annotators = drawn, experts[[2, 3, 0]]
    rest = 1 - iou_distance(drawn[1:2], experts[3:4], [1], 1).item()
    expected = {1: (1 + 1 + rest) / 3, 0: (1 + 0 + rest) / 3}
    for empty, value in expected.items():
        found = hungarian_matched_iou(samples, annotators, num_classes=2, empty=empty)
        assert found.item() == pytest.approx(value)
    skipped = hungarian_matched_iou(samples, annotators, num_classes=2, empty=float("nan"))
    assert skipped.item() == pytest.approx((1 + rest) / 2)


def test_a_batch_is_its_cases():
    torch.manual_seed(0)
    samples, annotators = torch.randint(3, (2, 4, 2, 3, 3)), torch.randint(3, (2, 6, 2, 3, 3))
    options = {"num_classes": 3, "spatial_dims": 3}
    together = hungarian_matched_iou(samples, annotators, **options)
    for index in range(2):
        alone = hungarian_matched_iou(samples[index], annotators[index], **options)
        assert alone == together[index]
