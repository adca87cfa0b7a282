"""Make a network of MONAI's or nnU-Net's reversible by `revgrad.convert`, and train what came out.

The converted network is another function with fresh weights. It is measured beside the original.
Needs MONAI (`pip install monai`), for PlainConvUNet `pip install dynamic-network-architectures`;
revgrad depends on neither.

    python examples/convert_monai.py
    python examples/convert_monai.py --network DynUNet --spatial-dims 3 --size 32 --steps 0
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import revgrad
from revgrad.memory import measure
from revgrad.models.losses import dice_cross_entropy

CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


def basic_unet(dims: int, c: int) -> nn.Module:
    """Two units on each level."""
    nets = import_module("monai.networks.nets")
    return nets.BasicUNet(dims, 1, 2, features=(c, c, 2 * c, 4 * c, 8 * c, c))


def unet(dims: int, c: int) -> nn.Module:
    """Residual blocks, the first unit of each strided."""
    nets = import_module("monai.networks.nets")
    return nets.UNet(dims, 1, 2, (c, 2 * c, 4 * c), (2, 2), num_res_units=3)


def dynunet(dims: int, c: int) -> nn.Module:
    """MONAI's nnU-Net."""
    nets = import_module("monai.networks.nets")
    return nets.DynUNet(dims, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2), filters=(c, 2 * c, 4 * c))


def segresnet(dims: int, c: int) -> nn.Module:
    """Residual blocks whose sums, norms and activations are code."""
    nets = import_module("monai.networks.nets")
    return nets.SegResNet(dims, c, 1, 2)


def plain_conv_unet(dims: int, c: int) -> nn.Module:
    """nnU-Net's own."""
    nets = import_module("dynamic_network_architectures.architectures.unet")
    conv, widths = CONVOLUTIONS[dims], (c, 2 * c, 4 * c)
    options = {"norm_op": NORMS[dims], "norm_op_kwargs": {"affine": True}, "nonlin": nn.LeakyReLU}
    return nets.PlainConvUNet(1, 3, widths, conv, 3, (1, 2, 2), 2, 2, 2, **options)


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "BasicUNet": basic_unet,
    "UNet": unet,
    "DynUNet": dynunet,
    "SegResNet": segresnet,
    "PlainConvUNet": plain_conv_unet,
}


def balls(count: int, shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noisy images (N, 1, *shape) of a ball, and its pixels (N, *shape) as label 1."""
    axes = [torch.linspace(-1, 1, size) for size in shape]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    centres = torch.rand(count, len(shape), *[1 for _ in shape], generator=generator) - 0.5
    labels = ((place - centres).norm(dim=1) < 0.4).long()
    noise = torch.randn(labels.shape, generator=generator)
    return (labels + 0.5 * noise)[:, None], labels


def train(net: nn.Module, steps: int, shape: Sequence[int], seed: int) -> list[float]:
    """Train on fresh images."""
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)  # made after the conversion
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        images, labels = balls(4, shape, generator)
        optimizer.zero_grad()
        loss = dice_cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def peak(net: nn.Module, shape: Sequence[int]) -> int:
    """Bytes at the peak of a training step on one image."""
    images, labels = balls(1, shape, torch.Generator().manual_seed(0))
    report = measure(lambda: F.cross_entropy(net(images), labels).backward(), net)
    net.zero_grad()
    return report.peak_without_scratch


def main(argv: Sequence[str] | None = None) -> int:
    """Convert, train, and print report, loss and memory."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--network", choices=NETWORKS, default="BasicUNet")
    parser.add_argument("--spatial-dims", type=int, choices=CONVOLUTIONS, default=2)
    parser.add_argument("--channels", type=int, default=8, help="of the finest level (8)")
    parser.add_argument("--size", type=int, default=64, help="side of the images (64)")
    parser.add_argument("--min-length", type=int, default=2, help="units that a run must have (2)")
    parser.add_argument("--steps", type=int, default=20, help="of the optimizer (20)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    shape = (args.size,) * args.spatial_dims
    torch.manual_seed(args.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MONAI's optional parts; the report says what ours says
        try:
            net = NETWORKS[args.network](args.spatial_dims, args.channels)
        except ModuleNotFoundError as error:
            package = (error.name or "").replace("_", "-")
            parser.exit(1, f"{args.network} needs another package: pip install {package}\n")
        before = peak(net, shape)
        # In place, so that the original takes no memory when the new network is measured.
        net, report = revgrad.convert(net, min_length=args.min_length, inplace=True)
    after = peak(net, shape)
    print(report, end="\n\n")
    print(f"peak of a training step: {before / 2**20:.2f} MiB before, {after / 2**20:.2f} after")
    losses = train(net, args.steps, shape, args.seed)
    if losses:
        print(f"loss {losses[0]:.3f} at the beginning, {losses[-1]:.3f} after {args.steps} steps")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
