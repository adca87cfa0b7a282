from dataclasses import replace

import pytest
import torch

from revgrad.models.data import Case, Scenes, Switch, SwitchClasses
from revgrad.models.metrics import generalized_energy_distance, known_truth_report


def make_case(switch, scene, name="case"):
    return Case(
        image=torch.zeros(1, *scene.shape),
        annotators=switch.modes(scene),
        name=name,
        patient=name,
        weights=switch.probabilities,
        facts={"scene": scene, "switches": switch.pairs},
    )


@pytest.fixture
def stripes():
    """Labels 0, 1, 2 in stripes of eight pixels; 1 turns to 3 with 1/4, 2 to 4 with 1/3."""
    switch = SwitchClasses([Switch(1, 3, 1 / 4), Switch(2, 4, 1 / 3)])
    return make_case(switch, torch.arange(3).repeat_interleave(2).repeat(4, 1))


@pytest.fixture
def scenes():
    return list(Scenes("test", count=40, size=(32, 32)))


def draw_modes(case, count, generator):
    return torch.multinomial(case.weights, count, replacement=True, generator=generator)


def draw(case, count, generator):
    return case.annotators[draw_modes(case, count, generator)]


def test_samples_of_the_truth_are_as_far_from_it_as_any_true_sample(scenes):
    generator = torch.Generator().manual_seed(3)
    samples = [draw(case, 16, generator) for case in scenes]
    report = known_truth_report(samples, scenes, num_classes=12)
    mean, high = report.true_variation
    assert 0 < mean < high < 0.12
    assert report.total_variation <= high
    assert report.excess_variation == pytest.approx(report.total_variation - mean)
    # Every class is in every scene, so each has the limits of test_ged_limits.
    assert report.limits.perfect.tolist() == pytest.approx([0.0362386] * 40, abs=1e-7)
    assert report.limits.single_mode.tolist() == pytest.approx([0.3905880] * 40, abs=1e-7)
    assert abs(report.normalized_ged) < 0.03
    assert report.as_one.tolist() == report.whole.tolist() == report.recalled.tolist() == [1] * 5
    expected = torch.tensor([8, 7, 6, 5, 4], dtype=torch.float64) / 17
    torch.testing.assert_close(report.flipped, expected, atol=0.08, rtol=0)


def test_ged_is_that_of_the_switched_classes_under_a_known_distribution(scenes):
    generator = torch.Generator().manual_seed(0)
    samples = torch.randint(12, (40, 3, 32, 32), generator=generator)
    report = known_truth_report(samples, scenes, num_classes=12)
    expected = [
        generalized_energy_distance(
            drawn,
            case.annotators,
            num_classes=12,
            classes=range(2, 12),
            empty=float("nan"),
            annotator_weights=case.weights,
        )
        for drawn, case in zip(samples, scenes, strict=True)
    ]
    torch.testing.assert_close(report.ged, torch.stack(expected))
    assert report.frequencies.sum().item() == pytest.approx(1)


def test_the_best_single_mode_is_all_the_way_from_perfect(scenes):
    samples = (case.annotators[:1].expand(4, -1, -1) for case in scenes)  # a generator will do
    report = known_truth_report(samples, scenes, num_classes=12)
    assert report.normalized_ged == pytest.approx(1)
    assert report.frequencies[0] == 1 and report.flipped.tolist() == [0] * 5
    assert report.total_variation == pytest.approx(1 - scenes[0].weights[0].item())


def test_pixels_drawn_independently_do_not_flip_as_one(scenes):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.arange(32 * 32)
    samples = []
    for case in scenes:
        which = draw_modes(case, 16 * 1024, generator)
        samples.append(case.annotators.flatten(1)[which.view(16, 1024), pixels].view(16, 32, 32))
    report = known_truth_report(samples, scenes, num_classes=12)
    expected = torch.tensor([9, 10, 11, 12, 13], dtype=torch.float64) / 17
    torch.testing.assert_close(report.as_one, expected, atol=0.06, rtol=0)
    assert report.whole.max() < 0.01 and report.recalled.tolist() == [1] * 5
    assert report.normalized_ged > 0.5


def test_ged_alone_does_not_see_how_switches_go_together():
    switch = SwitchClasses([Switch(1, 3, 0.5), Switch(2, 4, 0.5)])
    case = make_case(switch, torch.arange(3).repeat_interleave(2).repeat(4, 1))
    together = case.annotators[[0, 3]]  # each class flips in half of the samples, always both
    sees, blind = (
        known_truth_report([together], [case], num_classes=5, empty=empty)
        for empty in (float("nan"), 1)
    )
    assert blind.ged.item() == pytest.approx(0, abs=1e-12)
    assert sees.ged.item() == pytest.approx(1 / 12)
    assert blind.total_variation == sees.total_variation == 0.5


def test_counts_flips_by_hand(stripes):
    samples = stripes.annotators[[0, 1, 3, 0]].clone()
    samples[0, 0, 2:4] = 3  # a quarter of label 1 flips by itself
    samples[1, 1, 2:4] = 0  # a quarter of it gets neither label
    samples[3, :, 4:] = 0  # label 2 is not found at all
    report = known_truth_report([samples], [stripes], num_classes=5)
    assert report.draws == 4
    assert report.as_one.tolist() == [(0.75 + 3) / 4, 1]
    assert report.whole.tolist() == [3 / 4, 1]
    assert report.recalled.tolist() == [30 / 32, 24 / 32]
    assert report.flipped.tolist() == pytest.approx([2 / 4, 1 / 3])
    # Without label 2, modes 0 and 2 are equally far and share the last sample by 2/3 and 1/3.
    assert report.frequencies.tolist() == pytest.approx([5 / 12, 1 / 4, 1 / 12, 1 / 4])
    # The truth is 1/2, 1/6, 1/4, 1/12.
    assert report.total_variation == pytest.approx(1 / 4)


def test_one_draw_of_the_truth_has_a_total_variation_known_in_closed_form(stripes):
    report = known_truth_report([stripes.annotators[:1]], [stripes], num_classes=5)
    expected = (stripes.weights * (1 - stripes.weights)).sum().item()
    assert report.true_variation[0] == pytest.approx(expected, abs=0.05)


def test_modes_that_look_the_same_share_the_true_samples_too():
    switch = SwitchClasses([Switch(1, 3, 1 / 4), Switch(2, 4, 1 / 3)])
    nothing = make_case(switch, torch.zeros(4, 4, dtype=torch.int64))
    report = known_truth_report([nothing.annotators[:2]], [nothing], num_classes=5, empty=1)
    assert report.total_variation == pytest.approx(0, abs=1e-12)
    assert report.true_variation == pytest.approx((0, 0), abs=1e-12)
    assert report.as_one.isnan().all() and report.recalled.isnan().all()


def test_volumes_and_repetition(stripes):
    switch = SwitchClasses([Switch(1, 3, 1 / 4), Switch(2, 4, 1 / 3)])
    volume = make_case(switch, stripes.facts["scene"].expand(3, -1, -1))
    flat = known_truth_report([stripes.annotators[[0, 3]]], [stripes], num_classes=5)
    report = known_truth_report([volume.annotators[[0, 3]]], [volume], num_classes=5)
    torch.testing.assert_close(report.ged, flat.ged)
    assert report.true_variation == flat.true_variation
    other = torch.Generator().manual_seed(5)
    again = known_truth_report(
        [volume.annotators[[0, 3]]], [volume], num_classes=5, generator=other
    )
    assert again.true_variation != flat.true_variation


def test_prints_what_it_found(stripes):
    text = str(known_truth_report([stripes.annotators], [stripes], num_classes=5))
    assert "1 images, 4 samples each" in text
    assert "share of samples flipped   0.500 0.500" in text


def test_says_what_is_wrong(stripes):
    samples = [stripes.annotators]
    report = {"num_classes": 5}
    with pytest.raises(ValueError, match="case is no known truth: it needs weights"):
        known_truth_report(samples, [replace(stripes, weights=None)], **report)
    with pytest.raises(ValueError, match="no known truth"):
        known_truth_report(samples, [replace(stripes, facts={})], **report)
    other = replace(stripes, weights=stripes.weights.flip(0), name="other")
    with pytest.raises(ValueError, match="other and case differ"):
        known_truth_report(samples * 2, [stripes, other], **report)
    with pytest.raises(ValueError, match="case has 1, the first 4"):
        known_truth_report([samples[0], samples[0][:1]], [stripes] * 2, **report)
    with pytest.raises(ValueError, match="there are no cases"):
        known_truth_report([], [], **report)
    with pytest.raises(ValueError, match="zip"):
        known_truth_report(samples, [stripes] * 2, **report)
    with pytest.raises(ValueError, match="samples must hold labels from 0 to 4"):
        known_truth_report([samples[0] + 3], [stripes], **report)
