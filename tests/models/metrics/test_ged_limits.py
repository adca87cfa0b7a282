from fractions import Fraction
from itertools import product
from math import nan

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from revgrad.models.data import SwitchClasses
from revgrad.models.data.switches import STREET_PROBABILITIES
from revgrad.models.metrics import ged_limits, generalized_energy_distance


@pytest.fixture
def street():
    """One pixel of each class that switches, all of its modes, and their probabilities."""
    switch = SwitchClasses.from_names(["none", *STREET_PROBABILITIES], STREET_PROBABILITIES)
    return switch.modes(torch.arange(6)[None]), switch.probabilities


def hamming_shares(chances):
    """Probability that two independent annotations differ in k switches, for each k."""
    shares = [Fraction(0)] * (len(chances) + 1)
    for differs in product((0, 1), repeat=len(chances)):
        chance = Fraction(1)
        for p, d in zip(chances, differs, strict=True):
            chance *= 2 * p * (1 - p) if d else 1 - 2 * p * (1 - p)
        shares[sum(differs)] += chance
    return shares


def test_limits_of_the_street_are_those_of_exact_fractions(street):
    modes, probabilities = street
    chances = [Fraction(n, 17) for n in (8, 7, 6, 5, 4)]
    # k switches that differ are 2 k classes of which one map has none; the other 5 - k agree.
    spread = sum(s * Fraction(2 * k, 5 + k) for k, s in enumerate(hamming_shares(chances)))
    from_none = Fraction(0)  # the mean distance of an annotation from mode 0
    for thrown in product((0, 1), repeat=5):
        chance = Fraction(1)
        for p, t in zip(chances, thrown, strict=True):
            chance *= p if t else 1 - p
        from_none += chance * Fraction(2 * sum(thrown), 5 + sum(thrown))
    options = {"num_classes": 11, "classes": range(1, 11), "empty": nan}
    found = ged_limits(modes, probabilities, draws=16, **options)
    assert found.perfect.item() == pytest.approx(float(spread / 16), rel=1e-12)
    assert found.single_mode.item() == pytest.approx(float(2 * from_none - spread), rel=1e-12)
    assert found.perfect.item() == pytest.approx(0.0362386, abs=1e-7)
    assert found.single_mode.item() == pytest.approx(0.3905880, abs=1e-7)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 4), st.sampled_from([0, 1]), st.integers(1, 3))
def test_perfect_is_the_mean_over_everything_that_can_be_drawn(seed, count, empty, draws):
    generator = torch.Generator().manual_seed(seed)
    modes = torch.randint(3, (count, 2, 3), generator=generator)
    probabilities = torch.rand(count, generator=generator, dtype=torch.float64) + 0.1
    probabilities /= probabilities.sum()
    options = {"num_classes": 3, "empty": empty, "annotator_weights": probabilities}
    mean = torch.zeros((), dtype=torch.float64)
    for drawn in product(range(count), repeat=draws):
        chance = probabilities[list(drawn)].prod()
        mean += chance * generalized_energy_distance(modes[list(drawn)], modes, **options)
    found = ged_limits(modes, probabilities, draws=draws, num_classes=3, empty=empty)
    torch.testing.assert_close(found.perfect, mean)
    single = [generalized_energy_distance(mode[None], modes, **options) for mode in modes]
    torch.testing.assert_close(found.single_mode, torch.stack(single).amin())


def test_a_batch_of_volumes(street):
    modes, probabilities = street
    volumes = modes[:, None].expand(-1, 2, -1, -1)
    options = {"draws": 4, "num_classes": 11, "include_background": True}
    one = ged_limits(modes, probabilities, **options)
    both = ged_limits(
        torch.stack([volumes, volumes.flip(-1)]), probabilities, spatial_dims=3, **options
    )
    assert both.perfect.shape == both.single_mode.shape == (2,)
    torch.testing.assert_close(both.perfect, one.perfect.expand(2))
    torch.testing.assert_close(both.single_mode, one.single_mode.expand(2))


def test_with_empty_nan_each_mode_needs_a_class(street):
    modes, probabilities = street
    options = {"draws": 4, "num_classes": 11, "empty": nan}
    with pytest.raises(ValueError, match="some modes of an image have none of the classes"):
        ged_limits(modes, probabilities, classes=[6, 7], **options)
    nothing = ged_limits(torch.zeros_like(modes), probabilities, classes=[6, 7], **options)
    assert nothing.perfect.isnan() and nothing.single_mode.isnan()


def test_refuses_what_is_no_distribution(street):
    modes, probabilities = street
    for wrong in (probabilities[:4], probabilities * 2, -probabilities):
        with pytest.raises(ValueError, match="32 numbers above 0 that sum to 1"):
            ged_limits(modes, wrong, draws=4, num_classes=11)
    with pytest.raises(ValueError, match="draws must be at least 1"):
        ged_limits(modes, probabilities, draws=0, num_classes=11)
