import pytest
import torch

from revgrad.models.data.lidc_images import consensus_shape, lidc_image, load_lungs


def discs(*radii, size=64):
    place = torch.arange(size) - size / 2
    return torch.stack([(place[:, None] ** 2 + place**2 <= r**2).to(torch.uint8) for r in radii])


def draw(masks, seed=0, **options):
    options = {"spacing": 0.7, "texture": 5.0, **options}
    return lidc_image(masks, generator=torch.Generator().manual_seed(seed), **options)


def test_lungs_are_dark_and_sorted_by_depth():
    lungs = load_lungs()
    slices, rows, columns = lungs.places.T
    assert lungs.hounsfield[slices, rows, columns].mean() < -600
    assert (lungs.depths.diff() <= 0).all() and lungs.depths[-1] == 3 and lungs.depths[0] > 12


def test_the_same_generator_draws_the_same_image():
    masks = discs(8, 9, 10, 8)
    assert torch.equal(draw(masks, 1), draw(masks, 1))
    assert not torch.equal(draw(masks, 1), draw(masks, 2))


def test_images_have_the_documented_form():
    image = draw(discs(8, 9, 10, 8))
    assert image.shape == (1, 64, 64) and image.dtype == torch.float32
    assert -0.5 <= image.min() < -0.3 and 0.1 < image.max() <= 0.5


def test_a_solid_nodule_is_brighter_than_ground_glass_and_than_the_lung():
    masks = discs(9, 9, 9, 9)
    inside = discs(5)[0].bool()
    ring = (discs(14)[0] - discs(12)[0]).bool()
    for seed in range(5):
        solid, glass = (draw(masks, seed, texture=t)[0] for t in (5.0, 1.0))
        assert solid[inside].mean() > glass[inside].mean() + 0.2
        assert solid[inside].mean() > solid[ring].mean() + 0.1


def test_the_image_knows_the_consensus_alone():
    """Annotators who disagree more, about the same shape, leave the image as it is, to the bit."""
    agree, disagree = discs(10, 10, 10, 10), discs(8, 10, 10, 12)
    assert torch.equal(consensus_shape(agree), consensus_shape(disagree))
    for seed in range(3):
        assert torch.equal(draw(agree, seed), draw(disagree, seed))


def test_what_one_of_four_outlined_is_shown():
    one = discs(6, 0, 0, 0)
    one[1:] = 0
    assert torch.equal(consensus_shape(one), consensus_shape(discs(6, 6, 6, 6)))


@pytest.mark.parametrize("spacing", [0.46, 0.98])
def test_the_spacing_scales_the_background(spacing):
    """The field of view grows with the pixels: across more of the chest there is more contrast."""
    stds = [draw(discs(3), seed, spacing=spacing)[0].std() for seed in range(10)]
    narrow = [draw(discs(3), seed, spacing=0.1)[0].std() for seed in range(10)]
    assert sum(stds) > sum(narrow)
