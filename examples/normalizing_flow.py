"""Train a normalising flow on small images, reversibly, and compare its memory with autograd's.

A flow maps images to latents that shall be normal numbers; its likelihood is theirs times the
determinant of the map's Jacobian. The steps are those of Glow (Kingma and Dhariwal 2018): ActNorm,
an invertible 1x1 convolution, an affine coupling. After each level half of the channels are
latents already and the rest goes on at half the size (RealNVP, Dinh et al. 2017). The images are
drawn here: bright discs on a darker ground, with noise, in 256 grey levels.

    python examples/normalizing_flow.py
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from revgrad import (
    ActNorm,
    AffineCoupling,
    HaarDownsample,
    Invertible1x1Conv,
    ReversibleSequence,
    SplitSkip,
)
from revgrad.memory import measure

GREY_LEVELS = 256
Latents = tuple[Tensor, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Check the likelihood, measure the memory, train, and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, default=16, help="of the images, in pixels (16)")
    parser.add_argument("--levels", type=int, default=2, help="scales of the flow (2)")
    parser.add_argument("--depth", type=int, default=8, help="steps of flow by level (8)")
    parser.add_argument("--hidden", type=int, default=32, help="channels of sub-networks (32)")
    parser.add_argument("--batch", type=int, default=32, help="images of a training step (32)")
    parser.add_argument("--steps", type=int, default=200, help="of the optimizer (200)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and images (0)")
    args = parser.parse_args(argv)
    if args.size % 2 ** (args.levels + 1):
        parser.error(f"--size must divide by {2 ** (args.levels + 1)} for {args.levels} levels")

    torch.manual_seed(args.seed)
    print(f"log-determinant less that of the Jacobian: {likelihood_error():.1e}")
    net = flow(args.levels, args.depth, args.hidden)
    unseen = images(4 * args.batch, args.size)
    with torch.no_grad():
        net(streams(images(args.batch, args.size)))  # the start of each ActNorm
    for name, peak in peak_memory(net, images(args.batch, args.size)).items():
        print(f"peak memory of a step, {name:<17} {peak / 2**20:7.1f} MiB")
    print(f"bits per dimension before training: {evaluate(net, unseen):.3f}")
    train(net, args.steps, args.batch, args.size)
    print(f"bits per dimension after {args.steps} steps: {evaluate(net, unseen):.3f}")
    print(f"largest error of images from their latents: {round_trip_error(net, unseen):.1e}")
    return 0


def flow(levels: int, depth: int, hidden: int) -> ReversibleSequence:
    """A multi-scale flow of images whose 2x2 blocks are channels, see `streams`."""
    layers: list[nn.Module] = []
    channels = 4
    for level in range(levels):
        if level:
            layers += [SplitSkip(), HaarDownsample(2)]  # half the channels, then four times
            channels *= 2
        for _ in range(depth):
            layers += [
                ActNorm(channels),
                Invertible1x1Conv(channels),
                AffineCoupling(*(sub_network(channels // 2, hidden) for _ in "fg")),
            ]
    return ReversibleSequence(layers)


def sub_network(channels: int, hidden: int) -> nn.Sequential:
    """Gives log-scale and shift for each channel; both are zero at the start, as in Glow."""
    last = nn.Conv2d(hidden, 2 * channels, 3, padding=1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    first = nn.Conv2d(channels, hidden, 3, padding=1)
    return nn.Sequential(first, nn.SiLU(), nn.Conv2d(hidden, hidden, 1), nn.SiLU(), last)


def images(count: int, size: int) -> Tensor:
    """Draw images, (count, 1, size, size), whole numbers below `GREY_LEVELS`."""
    grid = torch.arange(size) + 0.5
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    centre = size * (0.25 + 0.5 * torch.rand(2, count, 1, 1, 1))
    radius = size * (0.1 + 0.2 * torch.rand(count, 1, 1, 1))
    inside = ((y - centre[0]) ** 2 + (x - centre[1]) ** 2).sqrt() < radius
    ground, disc = 40 + 40 * torch.rand(count, 1, 1, 1), 140 + 80 * torch.rand(count, 1, 1, 1)
    drawn = torch.where(inside, disc, ground) + 4 * torch.randn(count, 1, size, size)
    return drawn.round().clamp(0, GREY_LEVELS - 1)


def streams(image: Tensor) -> tuple[Tensor, Tensor]:
    """An image of real numbers in -1/2 to 1/2 as the streams of a flow, 2 channels each.

    Noise below a grey level makes a density out of probabilities (uniform dequantisation); the
    flow's bits are then an upper bound of those of the grey levels.
    """
    continuous = (image + torch.rand_like(image)) / GREY_LEVELS - 0.5
    first, second = F.pixel_unshuffle(continuous, 2).chunk(2, 1)
    return first, second


def bits_per_dimension(latents: Latents, logdet: Tensor) -> Tensor:
    """The mean over samples of -log2 of the probability of an image, by pixel."""
    squares = torch.stack([z.square().flatten(1).sum(1) for z in latents]).sum(0)
    dimensions = sum(z[0].numel() for z in latents)
    log_prior = -0.5 * (squares + dimensions * math.log(2 * math.pi))
    nats = -(log_prior + logdet).mean() / dimensions
    return nats / math.log(2) + math.log2(GREY_LEVELS)


def train(net: ReversibleSequence, steps: int, batch: int, size: int) -> None:
    """Maximise the likelihood of images."""
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        bits_per_dimension(*net(streams(images(batch, size)), logdet=True)).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimizer.step()


@torch.no_grad()
def evaluate(net: ReversibleSequence, image: Tensor) -> float:
    """Bits per dimension of images."""
    return bits_per_dimension(*net(streams(image), logdet=True)).item()


@torch.no_grad()
def round_trip_error(net: ReversibleSequence, image: Tensor) -> float:
    """How far images computed back from their latents are off, where 1 is white less black."""
    given = streams(image)
    pairs = zip(given, net.inverse(net(given)), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def peak_memory(net: ReversibleSequence, image: Tensor) -> dict[str, int]:
    """Bytes at the peak of a training step, both ways."""
    given = streams(image)

    def step() -> None:
        bits_per_dimension(*net(given, logdet=True)).backward()

    peaks = {}
    for name, net.save_memory in (("ordinary autograd", False), ("reversible", True)):
        peaks[name] = measure(step, net).peak
    net.zero_grad()
    return peaks


def likelihood_error() -> float:
    """The largest difference between log-determinants and those of Jacobians, on a tiny flow."""
    net = flow(levels=2, depth=2, hidden=4).double()
    given = streams(images(3, 8).double())
    net(given)
    with torch.no_grad():  # away from zero, where a coupling is the identity
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    logdet = net(given, logdet=True)[1]

    def latents(sample: Tensor) -> Tensor:
        found = net(sample[None].chunk(2, 1))
        return torch.cat([z.flatten() for z in found])

    jacobians = (torch.func.jacrev(latents)(sample).flatten(1) for sample in torch.cat(given, 1))
    expected = torch.stack([torch.linalg.slogdet(j)[1] for j in jacobians])
    return (logdet - expected).abs().max().item()


if __name__ == "__main__":
    raise SystemExit(main())
