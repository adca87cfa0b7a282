"""Learn to downsample a CT slice by orthogonal matrices so that few coefficients are large.

An orthogonal map keeps the 2-norm. Where the 1-norm is small, the image thus lies in few
coefficients. Here the 1-norm is minimised, from random matrices on, after figure 4 of the slides on
iUNets (Etmann, Ke and Schönlieb 2020). Each of three levels turns every channel into four of half
the size by a matrix of its own. Haar stands for the same levels with Haar's matrix everywhere.

    python examples/learn_downsampling.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from revgrad import OrthogonalDownsample, ReversibleSequence
from revgrad.models.data.organs import load_organs
from revgrad.optional import optional_import

LEVELS = 3
LEARNING_RATE = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    """Learn, print the norms and save the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--slice", type=int, default=15, help="of the sample volume, 0 to 29 (15)")
    parser.add_argument("--steps", type=int, default=300, help="of the optimizer (300)")
    parser.add_argument("--seed", type=int, default=0, help="of the random matrices (0)")
    parser.add_argument("--output", type=Path, default=Path("learn_downsampling.png"))
    args = parser.parse_args(argv)

    image = load_image(args.slice)
    coefficients = compare(image, args.steps, args.seed)
    norms = {name: norm(values).item() for name, values in coefficients.items()}
    for name, value in norms.items():
        print(f"{name:<9} 1-norm by pixel {value:.4f}")
    panels = {name: mosaic(values) for name, values in coefficients.items()}
    draw({"original": image[0, 0], **panels}, norms, args.output)
    print(f"The picture: {args.output}")
    return 0


def load_image(number: int) -> Tensor:
    """A slice of the sample CT, (1, 1, H, W) in 0 to 1, cut to what `LEVELS` can halve."""
    slice_ = load_organs().hounsfield[number].float()
    height, width = (n - n % 2**LEVELS for n in slice_.shape)
    return ((slice_[None, None, :height, :width] + 160) / 400).clamp(0, 1)  # soft tissue


def compare(image: Tensor, steps: int, seed: int = 0) -> dict[str, Tensor]:
    """The coefficients (1, 4**LEVELS, h, w) by random, Haar's and learned matrices."""
    torch.manual_seed(seed)
    net, haar = downsampling("random"), downsampling("haar")
    found = {"random": transform(net, image).detach(), "Haar": transform(haar, image).detach()}
    learn(net, image, steps)
    return found | {"learned": transform(net, image).detach()}


def downsampling(init: str) -> ReversibleSequence:
    """Levels that each turn every channel into four."""
    return ReversibleSequence(
        OrthogonalDownsample(4**level, spatial_dims=2, init=init) for level in range(LEVELS)
    )


def transform(net: ReversibleSequence, image: Tensor) -> Tensor:
    """Downsample; the image is the first stream, and the second one has no channels."""
    coefficients: Tensor = net((image, image[:, :0]))[0]
    return coefficients


def learn(net: ReversibleSequence, image: Tensor, steps: int) -> None:
    """Minimise the 1-norm of the image's coefficients over the matrices."""
    optimizer = torch.optim.Adam(net.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        norm(transform(net, image)).backward()
        optimizer.step()
        schedule.step()


def norm(coefficients: Tensor) -> Tensor:
    """The 1-norm by pixel."""
    return coefficients.abs().mean()


def mosaic(coefficients: Tensor) -> Tensor:
    """All channels (1, 4**LEVELS, h, w) side by side, the four of the first level as quarters."""
    tiles = coefficients[0]
    while tiles.shape[0] > 1:  # the last level's four belong together
        top_left, top_right, low_left, low_right = tiles.unflatten(0, (-1, 4)).unbind(1)
        rows = torch.cat([top_left, top_right], -1), torch.cat([low_left, low_right], -1)
        tiles = torch.cat(rows, -2)
    return tiles[0]


def draw(panels: dict[str, Tensor], norms: dict[str, float], path: Path) -> None:
    """Save images (H, W) side by side. Needs matplotlib."""
    module = optional_import("matplotlib.figure", "bench")
    figure = module.Figure(figsize=(3.4 * len(panels), 3.2), layout="constrained")
    for axes, (name, image) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        axes.imshow(image.abs().numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set_title(f"{name}, {norms[name]:.3f}" if name in norms else name)
        axes.set_axis_off()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    raise SystemExit(main())
