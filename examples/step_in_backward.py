"""Memory of a training step with the optimizer after the backward pass, and inside it.

A deep chain of wide couplings on few pixels: what fills the memory are weights and gradients, not
activations. With the optimizer inside the backward pass each gradient is freed once it is used. The
weights are the same, to the bit.

    python examples/step_in_backward.py
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence

import torch
from torch import nn

import revgrad
from revgrad.memory import MemoryReport, measure
from revgrad.optim import step_in_backward


def main(argv: Sequence[str] | None = None) -> int:
    """Train both ways, and print the peaks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--depth", type=int, default=20, help="couplings (20)")
    parser.add_argument("--channels", type=int, default=128, help="of both streams (128)")
    parser.add_argument("--steps", type=int, default=5, help="of the optimizer (5)")
    args = parser.parse_args(argv)

    weights = []
    for name, inside in (("after", False), ("inside", True)):
        report, digest = train(args.depth, args.channels, args.steps, inside)
        weights.append(digest)
        print(
            f"optimizer {name} the backward pass: peak {report.peak_without_scratch / 2**20:.1f} "
            f"MiB, of it gradients {report.gradients / 2**20:.1f} MiB"
        )
    print("weights equal to the bit:", weights[0] == weights[1])
    return 0


def train(depth: int, channels: int, steps: int, inside: bool) -> tuple[MemoryReport, bytes]:
    """The memory of a step, and a digest of the weights after all of them."""
    torch.manual_seed(0)
    half = channels // 2
    net = revgrad.ReversibleSequence([revgrad.AdditiveCoupling(unit(half)) for _ in range(depth)])
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    if inside:
        step_in_backward(optimizer)
    x, target = torch.randn(2, 2, channels, 16, 16)

    def step() -> None:
        optimizer.zero_grad()
        (net(x) - target).square().mean().backward()
        optimizer.step()

    for _ in range(steps):
        step()
        schedule.step()
    report = measure(step, net)
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in net.parameters()))
    return report, digest.digest()


def unit(channels: int) -> nn.Module:
    """Convolution, norm and activation."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1), nn.InstanceNorm2d(channels), nn.LeakyReLU()
    )


if __name__ == "__main__":
    raise SystemExit(main())
