"""The body of an iUNet in every way of training it that is measured.

A body maps (N, C, H, W) to the same shape. In all of them a coupling's sub-network is one unit of
convolution, instance norm and leaky ReLU, and all have the same couplings, skips and resampling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module

import torch
from torch import nn

from revgrad.benchmarks.iunet_table1.settings import LEVELS
from revgrad.benchmarks.peers import Availability, available
from revgrad.models import iUNet
from revgrad.nn import fuse


@dataclass(frozen=True)
class Variant:
    """One way of training.

    Attributes:
        make: Makes a body from its channels and the coupling blocks of each level and side.
        base: The variant that trains the same modules by ordinary autograd.
        about: What it does, in a few words.
        adaptor: The adaptor in `peers` that needs the same packages, if it needs any.
        steps: Whether an optimizer steps inside the backward pass.
    """

    make: Callable[[int, int], nn.Module]
    base: str
    about: str
    adaptor: str = ""
    steps: bool = False

    def available(self) -> Availability:
        """Whether it can run here, and if not, why and what to do."""
        return available(self.adaptor) if self.adaptor else Availability()


def body(variant: str, channels: int, depth: int) -> nn.Module:
    """The network of a variant, always with the same weights."""
    torch.manual_seed(0)
    return VARIANTS[variant].make(channels, depth)


def _revgrad(
    channels: int, depth: int, arithmetic: str, save_memory: bool, fused: bool = False
) -> nn.Module:
    widths = [channels * 2**level for level in range(LEVELS)]
    depths = [depth] * LEVELS
    options = {"block": unit, "arithmetic": arithmetic, "save_memory": save_memory}
    net = iUNet(2, 1, 1, widths, depths, **options)  # type: ignore[arg-type]
    if fused:
        fuse(net)
    return net.body


def _iunets(channels: int, depth: int, conventional: bool) -> nn.Module:
    coupling = import_module("iunets.layers").StandardAdditiveCoupling

    def block(in_channels: int, **_: object) -> nn.Module:
        half = in_channels // 2
        made: nn.Module = coupling(unit(half, half, 2), half)
        return made

    net: nn.Module = import_module("iunets").iUNet(
        channels,
        (depth,) * LEVELS,
        dim=2,
        create_module_fn=block,
        disable_custom_gradient=conventional,
    )
    return net


def unit(in_channels: int, out_channels: int, spatial_dims: int) -> nn.Module:
    """One unit of 3x3 convolution, instance norm and leaky ReLU, as a block of an iUNet."""
    assert spatial_dims == 2
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.InstanceNorm2d(out_channels, affine=True),
        nn.LeakyReLU(0.01),
    )


_STEPPING = "with SGD inside the backward pass; plain has no optimizer"
_PLAIN = "iUNet.body with save_memory=False: ordinary autograd"

VARIANTS: Mapping[str, Variant] = {
    "plain": Variant(partial(_revgrad, arithmetic="float", save_memory=False), "plain", _PLAIN),
    "revgrad": Variant(
        partial(_revgrad, arithmetic="float", save_memory=True), "plain", "iUNet.body"
    ),
    "plain-fused": Variant(
        partial(_revgrad, arithmetic="float", save_memory=False, fused=True),
        "plain",
        f"{_PLAIN}, with norm and activation fused by revgrad.nn.fuse",
    ),
    "revgrad-fused": Variant(
        partial(_revgrad, arithmetic="float", save_memory=True, fused=True),
        "plain",
        "iUNet.body, fused, against plain without fusion",
    ),
    "revgrad-stepping": Variant(
        partial(_revgrad, arithmetic="float", save_memory=True),
        "plain",
        f"iUNet.body, {_STEPPING}",
        steps=True,
    ),
    "revgrad-fused-stepping": Variant(
        partial(_revgrad, arithmetic="float", save_memory=True, fused=True),
        "plain",
        f"iUNet.body, fused, {_STEPPING}",
        steps=True,
    ),
    "plain-exact": Variant(
        partial(_revgrad, arithmetic="exact", save_memory=False),
        "plain-exact",
        f"{_PLAIN} of the function that exact arithmetic computes",
    ),
    "revgrad-exact": Variant(
        partial(_revgrad, arithmetic="exact", save_memory=True),
        "plain-exact",
        'iUNet.body with arithmetic="exact"',
    ),
    "iunets-conventional": Variant(
        partial(_iunets, conventional=True),
        "iunets-conventional",
        "iUNet of the package iunets, ordinary autograd by its disable_custom_gradient",
        "iunets",
    ),
    "iunets": Variant(
        partial(_iunets, conventional=False),
        "iunets-conventional",
        "iUNet of the package iunets, memory-efficient",
        "iunets",
    ),
}
