"""Batches of images with one drawn annotator each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from revgrad.models.data import Case, CaseDataset
from revgrad.models.data.case import draw_annotators
from revgrad.models.training.seeding import Purpose, derived_seed, generator

# Called with image, mask and seed=(seed, purpose, epoch, index); returns image and mask.
Augment = Callable[..., tuple[Tensor, Tensor]]


class Batches:
    """The batch of every step, a pure function of the seed and the step.

    Each epoch goes through all cases in an order of its own; a batch may span two epochs. Each time
    one annotator is drawn, by `Case.weights` if there are any.

    Args:
        dataset: where from.
        batch_size: images of a batch.
        seed: of order, annotators and augmentation.
        augment: changes image and mask alike.
    """

    def __init__(
        self,
        dataset: CaseDataset | Sequence[Case],
        batch_size: int,
        seed: int,
        augment: Augment | None = None,
    ) -> None:
        self._dataset = dataset
        self._batch_size = batch_size
        self._seed = seed
        self._augment = augment
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Images ``(N, channels, *spatial)`` and masks ``(N, *spatial)`` int64 of a step, from 0.

        Raises:
            ValueError: The images of the batch differ in shape.
        """
        first = step * self._batch_size
        pairs = [self._one(place) for place in range(first, first + self._batch_size)]
        images, masks = zip(*pairs, strict=True)
        shapes = {tuple(image.shape) for image in images}
        if len(shapes) > 1:
            raise ValueError(
                f"the images of a batch differ in shape, {sorted(shapes)}: crop them to one size "
                "in data_options, or take a batch_size of 1"
            )
        return torch.stack(images), torch.stack(masks)

    def _one(self, place: int) -> tuple[Tensor, Tensor]:
        epoch, within = divmod(place, len(self._dataset))
        index = int(self._permutation(epoch)[within])
        case = self._dataset[index]
        drawn = draw_annotators(case, 1, generator(self._seed, Purpose.ANNOTATOR, place))
        image, mask = case.image, drawn[0].long()
        if self._augment is not None:
            seed = (self._seed, int(Purpose.AUGMENTATION), epoch, index)
            image, mask = self._augment(image, mask, seed=seed)
        return image, mask

    def _permutation(self, epoch: int) -> Tensor:
        if self._order[0] != epoch:
            draw = generator(self._seed, Purpose.ORDER, epoch)
            self._order = (epoch, torch.randperm(len(self._dataset), generator=draw))
        return self._order[1]


def spread(count: int, wanted: int) -> list[int]:
    """Indices of as many of `count` cases as wanted, evenly spaced; 0 for all."""
    wanted = min(wanted or count, count)
    return [place * count // wanted for place in range(wanted)]


def seed_noise(seed: int, purpose: Purpose, *numbers: int) -> None:
    """Seed torch's generators, those of devices included."""
    torch.manual_seed(derived_seed(seed, purpose, *numbers))
