"""Train a deep residual CNN of additive couplings (RevNet, Gomez et al. 2017).

Generated images show a grating, and the class is its direction. The network is measured at growing
depth, reversible and with ordinary autograd: the memory of the reversible one does not grow.

    python examples/residual_cnn.py
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from revgrad import AdditiveCoupling, HaarDownsample, ReversibleSequence
from revgrad.memory import measure

CLASSES = 4


class ResidualCNN(nn.Module):
    """Two stages of residual blocks with a wavelet between them: one reversible sequence.

    Args:
        channels: Of the first stage; even. The second has four times as many at half the size.
        depth: Couplings of each stage.

    Shapes:
        (N, 1, H, W) with even H and W to (N, CLASSES), as logits.
    """

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        first = [coupling(channels // 2) for _ in range(depth)]
        second = [coupling(2 * channels) for _ in range(depth)]
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.body = ReversibleSequence([*first, HaarDownsample(2), *second])
        self.head = nn.Linear(4 * channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images."""
        features = self.body(self.stem(x)).mean((2, 3))
        logits: Tensor = self.head(features)
        return logits


def coupling(channels: int) -> AdditiveCoupling:
    """A residual block on each of two streams of `channels`."""

    def block() -> nn.Sequential:
        conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), conv)

    return AdditiveCoupling(block(), block())


def gratings(count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images (N, 1, size, size) of a grating in noise, and the class (N,) of its direction."""
    labels = torch.randint(CLASSES, (count,), generator=generator)
    phases = 2 * math.pi * torch.rand(count, 1, 1, generator=generator)
    angles = math.pi * labels.view(-1, 1, 1) / CLASSES
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    waves = torch.sin(1.2 * (x * angles.cos() + y * angles.sin()) + phases)
    noise = torch.randn(waves.shape, generator=generator)
    return (waves + 0.5 * noise)[:, None], labels


def train(net: nn.Module, steps: int, size: int, seed: int) -> float:
    """Train on fresh images; the share of right answers on others."""
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        images, labels = gratings(32, size, generator)
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()
    net.eval()
    images, labels = gratings(128, size, generator)
    with torch.no_grad():
        return (net(images).argmax(1) == labels).float().mean().item()


def activations(channels: int, depth: int, size: int, save_memory: bool) -> int:
    """Bytes at the peak of a training step on 8 images, less weights and their gradients."""
    net = ResidualCNN(channels, depth)
    net.body.save_memory = save_memory
    images, labels = gratings(8, size, torch.Generator().manual_seed(0))
    report = measure(lambda: F.cross_entropy(net(images), labels).backward(), net)
    return report.kept_for_backward + report.workspace


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and print accuracy and memory by depth."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--channels", type=int, default=8, help="of the first stage (8)")
    parser.add_argument("--depth", type=int, default=4, help="couplings of each stage (4)")
    parser.add_argument("--size", type=int, default=16, help="side of the images (16)")
    parser.add_argument("--steps", type=int, default=60, help="of the optimizer (60)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    torch.manual_seed(args.seed)
    accuracy = train(ResidualCNN(args.channels, args.depth), args.steps, args.size, args.seed)
    print(f"right on new images after {args.steps} steps: {accuracy:.0%}")
    print("activations at the peak of a step, KiB\ndepth       plain reversible")
    for depth in (args.depth, 2 * args.depth, 4 * args.depth):
        sizes = (args.channels, depth, args.size)
        plain, reversible = (activations(*sizes, save) for save in (False, True))
        print(f"{depth:>5}  {plain / 1024:>10.0f} {reversible / 1024:>10.0f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
