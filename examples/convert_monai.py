"""Make a MONAI network reversible by `revgrad.convert`, and train the new network on discs.

The converted network is another function with fresh weights. It is measured beside the original.
Needs MONAI (`pip install monai`), which is no dependency of revgrad.

    python examples/convert_monai.py
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import revgrad
from revgrad.memory import measure
from revgrad.models.losses import dice_cross_entropy


def discs(count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noisy images (N, 1, size, size) of a disc, and its pixels (N, size, size) as label 1."""
    grid = torch.linspace(-1, 1, size)
    centres = torch.rand(count, 2, 1, 1, generator=generator) - 0.5
    distance = torch.hypot(grid[:, None] - centres[:, 0], grid - centres[:, 1])
    labels = (distance < 0.4).long()
    noise = torch.randn(labels.shape, generator=generator)
    return (labels + 0.5 * noise)[:, None], labels


def train(net: nn.Module, steps: int, size: int, seed: int) -> list[float]:
    """Train on fresh images."""
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)  # made after the conversion
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        images, labels = discs(4, size, generator)
        optimizer.zero_grad()
        loss = dice_cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def peak(net: nn.Module, size: int) -> int:
    """Bytes at the peak of a training step on one image."""
    images, labels = discs(1, size, torch.Generator().manual_seed(0))
    report = measure(lambda: F.cross_entropy(net(images), labels).backward(), net)
    return report.peak_without_scratch


def main(argv: Sequence[str] | None = None) -> int:
    """Convert, train, and print report, loss and memory."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--channels", type=int, default=8, help="of the finest level (8)")
    parser.add_argument("--size", type=int, default=64, help="side of the images (64)")
    parser.add_argument("--steps", type=int, default=20, help="of the optimizer (20)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if find_spec("monai") is None:
        parser.exit(1, "this example needs MONAI: pip install monai\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its optional parts
        from monai.networks.nets import BasicUNet

    torch.manual_seed(args.seed)
    c = args.channels
    original = BasicUNet(2, 1, 2, features=(c, c, 2 * c, 4 * c, 8 * c, c))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the report says the same
        net, report = revgrad.convert(original)
    print(report)
    losses = train(net, args.steps, args.size, args.seed)
    print(f"\nloss {losses[0]:.3f} at the beginning, {losses[-1]:.3f} after {args.steps} steps")
    for name, network in (("as it was", original), ("converted", net)):
        print(f"{name:<10} peak {peak(network, args.size) / 2**20:.2f} MiB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
