"""Discs of uncertain size, and a network with one latent number. `python toys.py ...` trains it."""

import sys

import torch
from torch import nn

from revgrad.models import DiagonalGaussian, LossTerms, Segmenter
from revgrad.models.data import Case


class Discs:
    title = "discs of uncertain size; nothing is real"
    in_channels = 1
    classes = ("background", "disc")

    def __init__(self, split, *, seed=0, spatial_dims=2, count=10, size=8, known=False):
        self.spatial_dims = spatial_dims
        self.patients = tuple(f"{split}-{index // 2}" for index in range(count))
        self._size = size
        self._known = known

    def __len__(self):
        return len(self.patients)

    def __getitem__(self, index):
        place = torch.arange(self._size) - self._size / 2 + (index % 3 - 1)
        grid = torch.meshgrid([place] * self.spatial_dims, indexing="ij")
        distance = sum(axis.square() for axis in grid).sqrt()
        annotators = torch.stack([distance < radius for radius in (1.5, 2.5, 3.5, 0.0)]).long()
        weights = torch.tensor([0.4, 0.3, 0.2, 0.1]) if self._known else None
        image = torch.exp(-distance / 3)[None]
        return Case(image, annotators, f"disc-{index}", self.patients[index], weights)


class DiscNet(Segmenter):
    def __init__(self, spatial_dims, in_channels, out_channels, width=4):
        super().__init__(spatial_dims, in_channels, out_channels)
        conv = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        norm = nn.BatchNorm2d if spatial_dims == 2 else nn.BatchNorm3d
        self.body = nn.Sequential(
            conv(in_channels + 1, width, 3, padding=1),
            norm(width),
            nn.ReLU(),
            nn.Dropout(0.1),
            conv(width, out_channels, 1),
        )
        self.encode = nn.Linear(2, 2)

    def _logits(self, image, latent):
        shape = (len(image), 1, *[1] * self.spatial_dims)
        latent = latent.reshape(shape).expand(-1, -1, *image.shape[2:])
        return self.body(torch.cat([image, latent], 1))

    def posterior(self, image, masks):
        facts = torch.stack([image.flatten(1).mean(1), masks.flatten(1).to(image).mean(1)], 1)
        mean, scale = self.encode(facts).chunk(2, 1)
        return [DiagonalGaussian.from_unbounded(mean, scale)]

    def loss(self, image, masks):
        self.check_masks(image, masks)
        (posterior,) = self.posterior(image, masks)
        logits = self._logits(image, posterior.rsample())
        cross = nn.functional.cross_entropy(logits, masks, reduction="sum") / len(image)
        kl = posterior.kl_divergence(DiagonalGaussian.standard_like(posterior)).mean()
        return LossTerms(cross + kl, cross.detach()[None], kl.detach()[None])

    def sample(self, image, n):
        self.check_image(image)
        draws = [self._logits(image, torch.randn(len(image)).to(image)) for _ in range(n)]
        return torch.stack(draws, 1)


def register(registry):
    registry.MODELS["disc-net"] = DiscNet
    registry.DATA["discs"] = Discs


if __name__ == "__main__":
    from revgrad import cli
    from revgrad.models.training import registry

    torch.set_num_threads(1)
    register(registry)
    raise SystemExit(cli.main(sys.argv[1:]))
