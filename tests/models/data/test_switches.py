import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from revgrad.models.data import Switch, SwitchClasses
from revgrad.models.data.switches import STREET_PROBABILITIES


@pytest.fixture
def switch():
    return SwitchClasses([Switch(1, 3, 0.25), Switch(2, 4, 0.4)])


def test_modes_and_probabilities_of_two_switches(switch):
    labels = torch.tensor([[0, 1], [2, 2]], dtype=torch.uint8)
    modes = switch.modes(labels)
    assert modes.dtype == torch.uint8
    assert modes.flatten(1).tolist() == [[0, 1, 2, 2], [0, 3, 2, 2], [0, 1, 4, 4], [0, 3, 4, 4]]
    expected = torch.tensor([0.45, 0.15, 0.3, 0.1], dtype=torch.float64)
    torch.testing.assert_close(switch.probabilities, expected)
    assert switch.flipped.tolist() == [[False, False], [True, False], [False, True], [True, True]]
    assert switch.pairs == ((1, 3), (2, 4))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_probabilities_are_those_of_independent_switches(chances):
    switch = SwitchClasses([Switch(i, 100 + i, p) for i, p in enumerate(chances)])
    probabilities, flipped = switch.probabilities, switch.flipped.double()
    assert probabilities.sum().item() == pytest.approx(1)
    each = torch.tensor(chances, dtype=torch.float64)
    torch.testing.assert_close(probabilities @ flipped, each)
    both = flipped.T @ (probabilities[:, None] * flipped)
    expected = torch.outer(each, each).fill_diagonal_(0) + torch.diag(each)
    torch.testing.assert_close(both, expected)


@given(st.integers(0, 3), st.lists(st.integers(0, 2), min_size=1, max_size=30))
def test_a_mode_flips_whole_classes_and_nothing_else(number, labels):
    switch = SwitchClasses([Switch(1, 3, 0.25), Switch(2, 4, 0.4)])
    plain = torch.tensor(labels)
    found = switch.mode(plain, number)
    assert torch.equal(found, switch.modes(plain)[number])
    turned = {1: 3 if number & 1 else 1, 2: 4 if number & 2 else 2, 0: 0}
    assert found.tolist() == [turned[label] for label in labels]


def test_drawing_has_the_probabilities_and_follows_the_generator(switch):
    labels = torch.tensor([1, 2])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([switch(labels, generator) for _ in range(2000)])
    shares = (drawn > 2).double().mean(0)  # within 4 standard deviations
    assert shares[0].item() == pytest.approx(0.25, abs=0.04)
    assert shares[1].item() == pytest.approx(0.4, abs=0.045)
    again = torch.Generator().manual_seed(0)
    assert torch.equal(drawn[:50], torch.stack([switch(labels, again) for _ in range(50)]))


def test_street_probabilities_are_the_published_ones():
    seventeenths = [round(17 * p, 9) for p in STREET_PROBABILITIES.values()]
    assert seventeenths == [8, 7, 6, 5, 4]
    switch = SwitchClasses.from_names(["bus", *STREET_PROBABILITIES], STREET_PROBABILITIES)
    assert switch.pairs == ((1, 6), (2, 7), (3, 8), (4, 9), (5, 10))
    assert len(switch.probabilities) == 32
    # No switch is thrown: 9 * 10 * 11 * 12 * 13 of 17^5.
    assert switch.probabilities[0].item() == pytest.approx(154440 / 1419857)
    entropy = -(switch.probabilities * switch.probabilities.log()).sum()
    assert entropy.item() == pytest.approx(3.17, abs=0.005)  # as the documentation says


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ([], "1 to 12 switches are accepted, not 0"),
        ([Switch(1, 2, 0.5)] * 13, "not 13"),
        ([Switch(1, 1, 0.5)], "different labels from 0 to 255"),
        ([Switch(1, 3, 0.5), Switch(3, 4, 0.5)], "different labels"),
        ([Switch(1, 256, 0.5)], "from 0 to 255"),
        ([Switch(1, 2, 1.5)], "between 0 and 1"),
    ],
)
def test_refuses_switches_that_make_no_distribution(switches, message):
    with pytest.raises(ValueError, match=message):
        SwitchClasses(switches)


def test_refuses_labels_that_do_not_fit(switch):
    with pytest.raises(TypeError, match="must be integers"):
        switch.modes(torch.rand(3))
    with pytest.raises(ValueError, match="labels must be 0 to 255, got -1 to 2"):
        switch.modes(torch.tensor([-1, 2]))
    with pytest.raises(ValueError, match=r"alternatives already, \[3\]"):
        switch(switch.mode(torch.tensor([1, 2]), 1))
    with pytest.raises(ValueError, match="modes are 0 to 3, not 4"):
        switch.mode(torch.tensor([1]), 4)
    with pytest.raises(ValueError, match=r"no classes of these names: \['tree'\]"):
        SwitchClasses.from_names(["road"], {"tree": 0.5})
