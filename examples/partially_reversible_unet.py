"""Train the partially reversible 3D U-Net of Brügger, Baumgartner and Konukoglu (2019).

On each level, convolutions are additive couplings of half the channels, whose activations are not
stored; pooling, 1x1 convolutions and upsampling between the levels are ordinary autograd. The
volumes are generated: balls in noise, nested as the three regions of brain tumours are (whole
tumour, tumour core, enhancing tumour).

    python examples/partially_reversible_unet.py
    python examples/partially_reversible_unet.py --channels 60 120 240 360 480 --groups 30 --size 64

The second line is the authors' network. Printed are the loss, the peak memory of a training step
and what autograd stores, reversible and with ordinary autograd of the same network.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from revgrad import AdditiveCoupling, ReversibleSequence
from revgrad.memory import measure

MODALITIES, REGIONS = 4, 3
# Radii of whole tumour, tumour core and enhancing tumour in parts of the volume's side.
RADII = torch.tensor([0.40, 0.28, 0.16])


class PartiallyReversibleUNet(nn.Module):
    """A U-Net whose convolutions are reversible, and what lies between its levels is not.

    Args:
        channels: Of each level, the finest first; even.
        groups: Of the group norm in each half of the channels.
        couplings: Of each level on the way down; on the way up there is one.
        arithmetic: "float" or "exact", see `ReversibleSequence`.

    Shapes:
        (N, MODALITIES, D, H, W) to (N, REGIONS, D, H, W), as logits. Each axis must divide by two
        for each level but the first.
    """

    def __init__(
        self,
        channels: Sequence[int] = (60, 120, 240, 360, 480),
        groups: int = 30,
        couplings: int = 1,
        arithmetic: str = "float",
    ) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(channels))

        def level(width: int, count: int) -> ReversibleSequence:
            layers = [coupling(width // 2, groups) for _ in range(count)]
            return ReversibleSequence(layers, arithmetic=arithmetic)

        self.stem = nn.Conv3d(MODALITIES, channels[0], 3, padding=1, bias=False)
        self.encoder = nn.ModuleList(level(width, couplings) for width in channels)
        self.widen = nn.ModuleList(nn.Conv3d(a, b, 1) for a, b in pairs)
        self.decoder = nn.ModuleList(level(width, 1) for width in channels)
        self.narrow = nn.ModuleList(nn.Conv3d(b, a, 1) for a, b in pairs)
        self.head = nn.Conv3d(channels[0], REGIONS, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Segment volumes."""
        x = self.encoder[0](self.stem(x))
        skips = []
        for widen, level in zip(self.widen, list(self.encoder)[1:], strict=True):
            skips.append(x)
            x = level(widen(F.max_pool3d(x, 2)))
        for i in reversed(range(len(skips))):
            x = self.narrow[i](self.decoder[i + 1](x))
            x = skips[i] + F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)
        logits: Tensor = self.head(self.decoder[0](x))
        return logits

    def save_memory(self, value: bool) -> None:
        """Compute activations back in the backward pass, or store them."""
        for level in (*self.encoder, *self.decoder):
            assert isinstance(level, ReversibleSequence)
            level.save_memory = value


def coupling(channels: int, groups: int) -> AdditiveCoupling:
    """An additive coupling of two streams of `channels`."""

    def half() -> nn.Sequential:
        conv = nn.Conv3d(channels, channels, 3, padding=1, bias=False)
        return nn.Sequential(nn.GroupNorm(groups, channels), nn.LeakyReLU(), conv)

    return AdditiveCoupling(half(), half())


def soft_dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """The sum over the regions of (1 - soft Dice) / 5, sums over the whole batch, smoothing 1.

    Both are (N, REGIONS, D, H, W). The fifth is the authors' scale; three regions give at most 0.6.
    """
    probability, axes = logits.sigmoid(), (0, 2, 3, 4)
    both = (probability * target).sum(axes)
    either = probability.sum(axes) + target.sum(axes)
    return ((1 - (2 * both + 1) / (either + 1)) / 5).sum()


def volumes(count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noisy images (N, MODALITIES, size, ...) and nested targets (N, REGIONS, size, ...)."""
    grid = torch.linspace(-0.5, 0.5, size)
    place = torch.stack(torch.meshgrid(grid, grid, grid, indexing="ij"))
    centres = 0.4 * torch.rand(count, 3, 1, 1, 1, generator=generator) - 0.2
    distance = (place - centres).norm(dim=1, keepdim=True)
    targets = (distance < RADII.view(1, REGIONS, 1, 1, 1)).float()
    contrasts = torch.rand(MODALITIES, REGIONS, generator=generator)
    clean = torch.einsum("mr,nrdhw->nmdhw", contrasts, targets)
    noise = torch.randn(clean.shape, generator=generator)
    return clean + 0.3 * noise, targets


def train(net: nn.Module, steps: int, size: int, seed: int) -> list[float]:
    """Train on a fresh volume each step, with the authors' optimizer at ten times their rate."""
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, weight_decay=1e-5)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        images, targets = volumes(1, size, generator)
        optimizer.zero_grad()
        loss = soft_dice_loss(net(images), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def stored(net: nn.Module, images: Tensor) -> int:
    """Bytes that autograd keeps of a forward pass, beside weights and the images."""
    own = {t.untyped_storage().data_ptr() for t in (images, *net.parameters())}
    sizes = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a node's own output would hold the node, which holds the output

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = net(images)  # alive until all is counted, so that no address is used twice
    total = sum(size for address, size in sizes.items() if address not in own)
    del output
    return total


def compare(net: PartiallyReversibleUNet, size: int) -> dict[str, tuple[int, int]]:
    """Bytes at the peak of a step, and bytes stored, with either kind of autograd."""
    images, targets = volumes(1, size, torch.Generator().manual_seed(0))
    found = {}
    for name, saving in (("plain", False), ("reversible", True)):
        net.save_memory(saving)
        report = measure(lambda: soft_dice_loss(net(images), targets).backward(), net)
        found[name] = report.peak_without_scratch, stored(net, images)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and print loss and memory."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--channels", type=int, nargs="+", default=[12, 24, 48], help="of levels")
    parser.add_argument("--groups", type=int, default=6, help="of group norm (6; the authors: 30)")
    parser.add_argument("--couplings", type=int, default=1, help="of each level going down (1)")
    parser.add_argument("--size", type=int, default=32, help="side of the volumes (32)")
    parser.add_argument("--steps", type=int, default=20, help="of the optimizer (20)")
    parser.add_argument("--arithmetic", choices=["float", "exact"], default="float")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    torch.manual_seed(args.seed)
    net = PartiallyReversibleUNet(args.channels, args.groups, args.couplings, args.arithmetic)
    print(f"parameters {sum(p.numel() for p in net.parameters()):,}")
    losses = train(net, args.steps, args.size, args.seed)
    print(f"loss {losses[0]:.3f} at the beginning, {losses[-1]:.3f} after {args.steps} steps")
    for name, (peak, kept) in compare(net, args.size).items():
        voxel = kept / args.size**3
        print(f"{name:<10} peak {peak / 2**20:.1f} MiB, stored {voxel:.0f} bytes a voxel")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
