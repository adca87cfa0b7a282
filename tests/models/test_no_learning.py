from itertools import product

import pytest
import torch

from revgrad.models.data import Case
from revgrad.models.no_learning import (
    majority_mask,
    no_learning_scores,
    resampled_annotators,
    threshold_samples,
)


class Cases:
    """A dataset of given cases."""

    title, spatial_dims, in_channels, classes = "two", 2, 1, ("background", "lesion")

    def __init__(self, cases):
        self.cases = cases
        self.patients = tuple(case.patient for case in cases)

    def __len__(self):
        return len(self.cases)

    def __getitem__(self, index):
        return self.cases[index]


def case(rows, weights=None, image=None):
    masks = torch.tensor(rows, dtype=torch.uint8)[:, None]
    image = masks[:1].float() if image is None else torch.tensor(image)[None, None]
    return Case(image, masks, "case", "patient", weights)


def test_thresholds_are_nested_and_evenly_spaced():
    image = torch.tensor([[[0.0, 1.0, 2.0, 3.0, 4.0]]])
    samples = threshold_samples(image, 3)  # above 1, 2 and 3
    assert samples.tolist() == [[[0, 0, 1, 1, 1]], [[0, 0, 0, 1, 1]], [[0, 0, 0, 0, 1]]]
    assert threshold_samples(torch.rand(2, 3, 4, 5)).shape == (16, 3, 4, 5)
    assert not threshold_samples(torch.ones(1, 4, 4)).any()


def connected(mask):
    """The pixels of a mask that a walk from its centre reaches, one after the other."""
    middle = [{(size - 1) // 2, size // 2} for size in mask.shape]
    todo = {place for place in product(*middle) if mask[place]}
    reached = set()
    while todo:
        place = todo.pop()
        reached.add(place)
        for step in product((-1, 0, 1), repeat=mask.dim()):
            near = tuple(p + s for p, s in zip(place, step, strict=True))
            inside = all(0 <= p < size for p, size in zip(near, mask.shape, strict=True))
            if inside and mask[near] and near not in reached:
                todo.add(near)
    found = torch.zeros_like(mask)
    for place in reached:
        found[place] = 1
    return found


@pytest.mark.parametrize("shape", [(9, 9), (8, 11), (5, 6, 4)])
def test_the_part_at_the_centre_is_connected_with_it(shape):
    image = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    whole, part = threshold_samples(image, 7), threshold_samples(image, 7, at_centre=True)
    assert torch.equal(part, torch.stack([connected(mask) for mask in whole]))
    assert 0 < part.sum() < whole.sum()


def test_a_winding_way_to_the_centre_is_found():
    image = torch.ones(1, 9, 9)
    image[0, 1, :8] = image[0, 3, 1:] = image[0, 5, :8] = image[0, 7, 1:] = 0
    assert torch.equal(threshold_samples(image, 1, at_centre=True), image.to(torch.uint8))
    assert not threshold_samples(1 - image, 1, at_centre=True).any()  # the centre is dark


def test_majority_by_pixel_the_highest_label_among_equals():
    masks = torch.tensor([[0, 0, 2, 1], [0, 1, 2, 1], [1, 1, 2, 2], [1, 1, 0, 2]])
    assert majority_mask(masks).tolist() == [[1, 1, 2, 2]]
    weights = torch.tensor([0.7, 0.1, 0.1, 0.1])
    assert majority_mask(masks, weights).tolist() == [[0, 0, 2, 1]]


def test_resampled_annotators_follow_the_weights():
    one = case([[0, 0], [1, 1]], torch.tensor([0.25, 0.75]))
    drawn = resampled_annotators(one, 4000, torch.Generator().manual_seed(0))
    assert drawn.shape == (4000, 1, 2)
    assert drawn.float().mean().item() == pytest.approx(0.75, abs=0.03)


def test_scores_by_hand():
    """Annotators {a, b} and {a, a} with IoU(a, b) = 1/2; the image is a itself."""
    cases = Cases([case([[1, 0, 0], [1, 1, 0]]), case([[1, 0, 0], [1, 0, 0]])])
    scores = no_learning_scores(cases, n=2)
    # Majority of the first case is b: 2 (1/2)(1/2) - 0 - 1/4 = 1/4; of the second it is right.
    assert scores["majority mask"] == pytest.approx(1 / 8)
    assert scores["thresholding"] == pytest.approx(1 / 8)  # a, twice
    centre = "thresholding, part at the centre"
    assert list(scores) == ["thresholding", centre, "majority mask", "resampled annotators"]


def test_many_resampled_annotators_are_a_perfect_model():
    cases = Cases([case([[1, 0, 0], [1, 1, 0]], torch.tensor([0.2, 0.8]))])
    assert no_learning_scores(cases, n=2000)["resampled annotators"] < 1e-3


def test_more_classes_have_no_thresholds():
    cases = Cases([case([[2, 1, 0], [2, 2, 0]])])
    cases.classes = ("background", "zone", "rim")
    assert "thresholding" not in no_learning_scores(cases)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="no cases"):
        no_learning_scores(Cases([]))
    with pytest.raises(ValueError, match="levels must be at least 1"):
        threshold_samples(torch.rand(1, 4, 4), 0)
    with pytest.raises(ValueError, match="n must be at least 1"):
        resampled_annotators(case([[0], [1]]), 0)
