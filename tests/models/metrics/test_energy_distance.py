"""Against published golden values, a naive loop, and what a distance must obey."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from revgrad.memory import measure
from revgrad.models.metrics import diversity, energy_terms, generalized_energy_distance
from revgrad.models.metrics.overlap import SLICE_BYTES

NAN = float("nan")


def naive_distance(a, b, classes, empty):
    """1 - mean IoU of two maps, pixel by pixel in Python."""
    scores = []
    for label in classes:
        pairs = list(zip(a.flatten().tolist(), b.flatten().tolist(), strict=True))
        both = sum(p == label and q == label for p, q in pairs)
        either = sum(p == label or q == label for p, q in pairs)
        scores.append(both / either if either else empty)
    scores = [s for s in scores if not math.isnan(s)]
    return 1 - sum(scores) / len(scores) if scores else NAN


def naive_mean(first, second, classes, empty, apart=False):
    found = [
        naive_distance(a, b, classes, empty)
        for (i, a), (j, b) in itertools.product(enumerate(first), enumerate(second))
        if not (apart and i == j)
    ]
    found = [d for d in found if not math.isnan(d)]
    return sum(found) / len(found) if found else NAN


def naive_energy(samples, annotators, classes, empty, unbiased):
    return (
        2 * naive_mean(samples, annotators, classes, empty)
        - naive_mean(samples, samples, classes, empty, unbiased)
        - naive_mean(annotators, annotators, classes, empty, unbiased)
    )


def random_maps(seed, *shape, num_classes=3):
    generator = torch.Generator().manual_seed(seed)
    # Some maps lack some classes: the cases where `empty` matters.
    ceiling = torch.randint(1, num_classes + 1, shape[:-2], generator=generator)[..., None, None]
    return torch.randint(num_classes, shape, generator=generator) % ceiling


sizes = st.tuples(st.integers(2, 4), st.integers(2, 4), st.integers(0, 2**20))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 0.1927067),
        ({"empty": 0}, 0.1857623),
        ({"empty": NAN}, 0.2072846),
        ({"unbiased": True}, -0.3170102),
    ],
)
def test_equals_the_reference_implementation(drawn, experts, options, expected):
    found = generalized_energy_distance(drawn, experts, num_classes=2, **options)
    assert found.shape == ()
    assert found.item() == pytest.approx(expected, abs=5e-8)


def test_terms_equal_the_reference_implementation(drawn, experts):
    terms = energy_terms(drawn, experts, num_classes=2)
    assert [t.item() for t in terms] == pytest.approx([0.7189534, 0.5679012, 0.6772989], abs=5e-8)
    assert diversity(drawn, num_classes=2) == terms.samples
    assert diversity(experts, num_classes=2) == terms.annotators


@given(sizes, st.sampled_from([0, 1, NAN]), st.booleans(), st.booleans(), st.sampled_from([2, 4]))
@settings(max_examples=40, deadline=None)
def test_equals_a_naive_loop(size, empty, unbiased, background, num_classes):
    s, a, seed = size
    samples = random_maps(seed, s, 3, 4, num_classes=num_classes)
    annotators = random_maps(seed + 1, a, 3, 4, num_classes=num_classes)
    found = generalized_energy_distance(
        samples,
        annotators,
        num_classes=num_classes,
        include_background=background,
        unbiased=unbiased,
        empty=empty,
    )
    classes = range(0 if background else 1, num_classes)
    expected = naive_energy(samples, annotators, classes, empty, unbiased)
    assert found.item() == pytest.approx(expected, abs=1e-12, nan_ok=True)


@given(sizes, st.booleans())
@settings(max_examples=30, deadline=None)
def test_neither_order_nor_names_nor_roles_matter(size, unbiased):
    s, a, seed = size
    samples, annotators = random_maps(seed, s, 3, 4), random_maps(seed + 1, a, 3, 4)
    options = {"num_classes": 3, "unbiased": unbiased}
    found = generalized_energy_distance(samples, annotators, **options)
    swap = torch.tensor([0, 2, 1])
    for again in (
        generalized_energy_distance(samples.flip(0), annotators.roll(1, 0), **options),
        generalized_energy_distance(swap[samples], swap[annotators], **options),
        generalized_energy_distance(annotators, samples, **options),
        generalized_energy_distance(samples.mT, annotators.mT, **options),
    ):
        torch.testing.assert_close(again, found, rtol=0, atol=1e-14)


@given(sizes, st.sampled_from([0, 1, NAN]))
@settings(max_examples=30, deadline=None)
def test_biased_is_zero_for_equal_sets_and_never_negative(size, empty):
    s, a, seed = size
    samples, annotators = random_maps(seed, s, 3, 4), random_maps(seed + 1, a, 3, 4)
    samples[0, 0], annotators[0, 0] = 1, 1  # with nan, some pair must be defined
    options = {"num_classes": 3, "empty": empty}
    same = generalized_energy_distance(samples, samples.repeat(2, 1, 1), **options)
    assert same.item() == pytest.approx(0, abs=1e-14)
    if empty in (0, 1):  # the IoU is then a positive definite kernel
        assert generalized_energy_distance(samples, annotators, **options) > -1e-14


@given(sizes)
@settings(max_examples=30, deadline=None)
def test_unbiased_and_biased_differ_by_the_share_of_the_diagonal(size):
    s, a, seed = size
    samples, annotators = random_maps(seed, s, 3, 4), random_maps(seed + 1, a, 3, 4)
    biased = energy_terms(samples, annotators, num_classes=3)
    unbiased = energy_terms(samples, annotators, num_classes=3, unbiased=True)
    # With empty=1 a map is at distance 0 from itself, so only the number of pairs differs.
    assert unbiased.between == biased.between
    torch.testing.assert_close(unbiased.samples * (s - 1) / s, biased.samples)
    torch.testing.assert_close(unbiased.annotators * (a - 1) / a, biased.annotators)


def test_unbiased_mean_does_not_depend_on_the_number_of_samples():
    modes = random_maps(3, 3, 3, 4)
    distance = {}
    for n in (2, 3):  # every way to draw n samples from the three modes, all equally likely
        draws = [modes[list(which)] for which in itertools.product(range(3), repeat=n)]
        weights = torch.tensor([0.2, 0.3, 0.5])
        for unbiased in (True, False):
            found = generalized_energy_distance(
                draws,
                modes.expand(len(draws), -1, -1, -1),
                num_classes=3,
                unbiased=unbiased,
                annotator_weights=weights,
            )
            distance[n, unbiased] = found.mean().item()
    assert distance[2, True] == pytest.approx(distance[3, True], abs=1e-12)
    assert distance[2, False] - distance[3, False] > 0.01


def test_weights_are_repetitions(drawn, experts):
    weighted = generalized_energy_distance(
        drawn, experts[:3], num_classes=2, annotator_weights=torch.tensor([0.5, 0.25, 0.25])
    )
    repeated = generalized_energy_distance(drawn, experts[[0, 0, 1, 2]], num_classes=2)
    torch.testing.assert_close(weighted, repeated)


@pytest.mark.parametrize("space", [(3, 4), (2, 3, 4)])
def test_a_batch_is_its_cases_ragged_or_not(space):
    samples = random_maps(0, 2, 3, *space)
    annotators = random_maps(1, 2, 4, *space)
    options = {"num_classes": 3, "spatial_dims": len(space)}
    apart = [generalized_energy_distance(samples[i], annotators[i], **options) for i in range(2)]
    assert apart[0] != apart[1]
    together = generalized_energy_distance(samples, annotators, **options)
    torch.testing.assert_close(together, torch.stack(apart), rtol=0, atol=0)

    ragged = generalized_energy_distance(samples, [annotators[0], annotators[1, :2]], **options)
    assert ragged[0] == together[0]
    assert ragged[1] == generalized_energy_distance(samples[1], annotators[1, :2], **options)


def test_cases_of_a_list_may_differ_in_size():
    sets = [random_maps(0, 2, 3, 4), random_maps(1, 3, 5, 2)]
    found = generalized_energy_distance(sets, sets, num_classes=3)
    torch.testing.assert_close(found, torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int32])
def test_takes_every_integer_type(drawn, experts, dtype):
    expected = generalized_energy_distance(drawn, experts, num_classes=2)
    assert generalized_energy_distance(drawn.to(dtype), experts, num_classes=2) == expected
    assert generalized_energy_distance(drawn, experts.to(dtype), num_classes=2) == expected


def test_a_narrow_type_does_not_wrap_labels_it_cannot_hold():
    maps = torch.tensor([[[44, 0]], [[0, 44]]], dtype=torch.uint8)
    options = {"num_classes": 400, "empty": 1}
    assert diversity(maps, classes=[44], **options) == 0.5
    assert diversity(maps, classes=[300], **options) == 0  # 300 is 44 in a uint8


def test_chosen_classes_are_averaged():
    samples, annotators = random_maps(0, 3, 3, 4), random_maps(1, 3, 3, 4)
    alone = [
        generalized_energy_distance(samples, annotators, num_classes=3, classes=[c])
        for c in range(3)
    ]
    every = generalized_energy_distance(samples, annotators, num_classes=3, include_background=True)
    torch.testing.assert_close(sum(alone) / 3, every)
    both = generalized_energy_distance(samples, annotators, num_classes=3, classes=[0, 2])
    torch.testing.assert_close((alone[0] + alone[2]) / 2, both)


def test_counts_are_exact_under_autocast_and_over_many_slices():
    # 70,001 pixels: neither half precision nor one slice holds them.
    samples = torch.zeros(40, 1, 70_001, dtype=torch.uint8)
    for index, sample in enumerate(samples):
        sample[..., index:] = 1
    assert samples[0].numel() > SLICE_BYTES // (5 * 40)
    sizes = 70_001 - torch.arange(40, dtype=torch.float64)
    iou = torch.minimum(sizes, sizes[:, None]) / torch.maximum(sizes, sizes[:, None])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = diversity(samples, num_classes=2)
    torch.testing.assert_close(found, (1 - iou).mean(), rtol=1e-12, atol=0)


def test_memory_is_bounded_whatever_the_number_of_pixels():
    annotators = torch.ones(1, 4, 512, 512, dtype=torch.uint8)
    samples = torch.ones(1, 100, 512, 512, dtype=torch.uint8)
    given = samples.nbytes + annotators.nbytes
    report = measure(lambda: generalized_energy_distance(samples, annotators, num_classes=2))
    assert report.peak - given < 1.1 * SLICE_BYTES < given / 2
    naive = 4 * (100 + 4) * 512 * 512  # one float32 mask of each map
    assert report.peak - given < naive / 10


@pytest.mark.cuda
def test_on_cuda_as_on_the_cpu():
    samples, annotators = random_maps(0, 2, 20, 64, 64), random_maps(1, 2, 4, 64, 64)
    expected = generalized_energy_distance(samples, annotators, num_classes=3)
    found = generalized_energy_distance(samples.cuda(), annotators.cuda(), num_classes=3)
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-14)


MAPS = torch.zeros(2, 3, 4, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("samples", "annotators", "options", "error", "message"),
    [
        (MAPS.float(), MAPS, {}, TypeError, "samples must be label maps .* torch.float32"),
        (MAPS + 2, MAPS, {}, ValueError, r"samples must hold labels from 0 to 1 .* from 2 to 2"),
        (MAPS, MAPS - 1, {}, ValueError, r"annotators must hold labels .* from -1 to -1"),
        (MAPS[:, :0], MAPS, {}, ValueError, r"samples are empty: .* \(0, 4, 4\)"),
        (MAPS, [], {}, ValueError, "annotators hold no case"),
        (MAPS, MAPS[:1], {}, ValueError, "same cases, got 2 and 1"),
        (MAPS, MAPS[0], {}, ValueError, "same cases, got 2 and one without a batch axis"),
        (MAPS, MAPS[..., :3], {}, ValueError, r"\(3, 4, 4\) and annotators \(3, 4, 3\) of case 0"),
        (MAPS[0, 0], MAPS, {}, ValueError, r"samples must be \(K, \*spatial\).*got \(4, 4\)"),
        (MAPS, [MAPS[0], 3], {}, ValueError, "annotators must be .* got int"),
        (torch.tensor(1), MAPS, {}, ValueError, r"samples must be .* got \(\)"),
        (MAPS[None], MAPS, {}, ValueError, "spatial_dims=2 image axes; got"),
        (MAPS, MAPS, {"spatial_dims": 0}, ValueError, "spatial_dims must be at least 1"),
        (MAPS, MAPS, {"num_classes": 1}, ValueError, "at least two classes"),
        (MAPS, MAPS, {"empty": 0.5}, ValueError, "empty must be 1, 0 or nan, got 0.5"),
        (MAPS, MAPS, {"classes": [2]}, ValueError, r"labels from 0 to 1.* got \[2\]"),
        (MAPS, MAPS, {"classes": []}, ValueError, "at least one"),
        (MAPS, MAPS, {"classes": [0], "include_background": True}, ValueError, "not both"),
        (MAPS[:, :1], MAPS, {"unbiased": True}, ValueError, "different samples .* got one"),
        (MAPS, MAPS[:, :1], {"unbiased": True}, ValueError, "different annotators .* got one"),
        (MAPS, MAPS, {"annotator_weights": torch.ones(2)}, ValueError, "3 of them"),
        (MAPS, MAPS, {"annotator_weights": torch.zeros(3)}, ValueError, "not all 0"),
        (MAPS, MAPS, {"annotator_weights": torch.ones(3, 3)}, ValueError, "each of 2 cases"),
        (MAPS[0], MAPS[0], {"annotator_weights": torch.ones(1, 3)}, ValueError, r"must be \(A,\)"),
    ],
)
def test_says_what_is_wrong(samples, annotators, options, error, message):
    with pytest.raises(error, match=message):
        generalized_energy_distance(samples, annotators, **{"num_classes": 2, **options})
