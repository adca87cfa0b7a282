import torch

from revgrad.models.data.organs import ORGANS, load_organs
from revgrad.models.demo.slices import batches, split


def test_held_out_slices_lie_between_training_slices():
    training, held_out = split(load_organs(), 5)
    assert held_out.numbers == (2, 7, 12, 17, 22, 27)
    assert sorted(training.numbers + held_out.numbers) == list(range(30))
    assert training.images.shape == (24, 2, 101, 122) and training.labels.shape == (24, 101, 122)
    assert training.images.min() == -1 and training.images.max() == 1


def test_held_out_slices_show_every_organ():
    _, held_out = split(load_organs(), 5)
    assert held_out.labels.unique().tolist() == list(range(1 + len(ORGANS)))


def test_same_seed_gives_the_same_batches():
    training, _ = split(load_organs(), 5)
    first, again, other = (list(batches(training, 2, 3, (64, 80), seed)) for seed in (1, 1, 2))
    assert first[0][0].shape == (3, 2, 64, 80) and first[0][1].shape == (3, 64, 80)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first[0][0], other[0][0])


def test_labels_stay_on_their_image():
    training, _ = split(load_organs(), 5)
    images, labels = next(batches(training, 1, 8, (96, 112), seed=0))
    lungs, bones = (labels == 1 + list(ORGANS).index(o) for o in ("lungs", "spine and ribs"))
    assert images[:, 0][lungs].mean() < -0.5 and images[:, 0][bones].mean() > 0.5
