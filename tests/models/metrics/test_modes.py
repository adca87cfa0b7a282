import pytest
import torch

from revgrad.models.metrics import mode_frequencies, switch_shares, total_variation


@pytest.fixture
def scene():
    """Stripes of classes 0, 1, 2; label 1 turns to 3 with 1/4, label 2 to 4 with 1/3."""
    plain = torch.arange(3).repeat_interleave(2).expand(4, 6)
    modes = []
    for first in (False, True):
        for second in (False, True):
            mode = plain.clone()
            mode[(plain == 1) & first] = 3
            mode[(plain == 2) & second] = 4
            modes.append(mode)
    first, second = torch.tensor([[3 / 4, 1 / 4], [2 / 3, 1 / 3]], dtype=torch.float64)
    return torch.stack(modes), torch.outer(first, second).flatten()


OPTIONS = {"num_classes": 5}


def test_counts_modes_also_when_samples_have_errors(scene):
    modes, _ = scene
    samples = modes[[0, 0, 1, 3, 3, 3]].clone()
    samples[:, 0, 0] = 2  # an error that no mode has
    found = mode_frequencies(samples, modes, **OPTIONS)
    expected = torch.tensor([2, 1, 0, 3], dtype=torch.float64) / 6
    torch.testing.assert_close(found, expected)


def test_true_samples_have_the_true_frequencies(scene):
    modes, probabilities = scene
    generator = torch.Generator().manual_seed(0)
    which = torch.multinomial(probabilities, 4000, replacement=True, generator=generator)
    found = mode_frequencies(modes[which], modes, **OPTIONS)
    torch.testing.assert_close(found, which.bincount(minlength=4) / 4000, check_dtype=False)
    assert total_variation(found, probabilities) < 0.03


def test_modes_that_look_the_same_share_their_samples(scene):
    modes, probabilities = scene
    modes = modes.clone()
    modes[modes == 2], modes[modes == 4] = 0, 0  # the second switch has nothing to switch here
    samples = modes[[0, 0, 0, 2]]
    equally = mode_frequencies(samples, modes, **OPTIONS)
    torch.testing.assert_close(equally, torch.tensor([3, 3, 1, 1], dtype=torch.float64) / 8)
    found = mode_frequencies(samples, modes, **OPTIONS, probabilities=probabilities)
    torch.testing.assert_close(found, probabilities)
    assert total_variation(found, probabilities) < 1e-12


def test_a_batch_of_volumes_and_no_class_at_all(scene):
    modes, _ = scene
    volumes = modes[:, None].expand(-1, 2, -1, -1)
    both = torch.stack([volumes, torch.zeros_like(volumes)])
    found = mode_frequencies(both[:, [2]], both, **OPTIONS, spatial_dims=3, empty=float("nan"))
    expected = torch.tensor([[0, 0, 1, 0], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
    torch.testing.assert_close(found, expected)


def test_total_variation_is_the_largest_difference_of_an_event():
    one, other = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.5, 0.3])
    assert total_variation(one, other).item() == pytest.approx(0.3)
    assert total_variation(torch.eye(2), torch.eye(2).flip(0)).tolist() == [1, 1]
    with pytest.raises(ValueError, match="differ in the number of modes"):
        total_variation(one, other[:2])


def test_refuses_probabilities_of_other_modes(scene):
    modes, _ = scene
    with pytest.raises(ValueError, match="4 numbers above 0"):
        mode_frequencies(modes, modes, **OPTIONS, probabilities=torch.ones(3))


def test_switch_shares_tell_a_whole_flip_from_a_mixture(scene):
    modes, _ = scene
    samples = modes.clone()
    samples[0, 0, 2:4] = 3  # one row of four flips
    samples[1, 1, 4:] = 0  # an error counts as neither
    found = switch_shares(samples, modes[0], [(1, 3), (2, 4), (4, 2)], **OPTIONS)
    expected = torch.tensor([[0.25, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float64)
    torch.testing.assert_close(found[:, :2], expected)
    assert found[:, 2].isnan().all()  # no pixel of the scene has label 4

    volumes = samples[:, None].expand(-1, 3, -1, -1)
    batch = switch_shares(
        torch.stack([volumes, volumes.flip(0)]),
        modes[:1, None].expand(2, 3, -1, -1),
        [(1, 3), (2, 4)],
        spatial_dims=3,
        **OPTIONS,
    )
    torch.testing.assert_close(batch, torch.stack([expected, expected.flip(0)]))


def test_switch_shares_says_what_is_wrong(scene):
    modes, _ = scene
    with pytest.raises(ValueError, match=r"from 0 to 4, at least one, got \[\(1, 7\)\]"):
        switch_shares(modes, modes[0], [(1, 7)], **OPTIONS)
    with pytest.raises(ValueError, match=r"scene must be \(\*spatial\) for one case"):
        switch_shares(modes, modes[None], [(1, 3)], **OPTIONS)
