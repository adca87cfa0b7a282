"""The sub-networks, and the precisions in which they run.

All are smooth: where an activation has a kink, the smallest deviation turns a derivative over, and
the error tells of the kink instead of the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Network:
    """A kind of sub-network.

    Attributes:
        make: Makes one with new weights for a stream with so many channels.
        about: What it is, and how large the streams become.
    """

    make: Callable[[int], nn.Module]
    about: str


@dataclass(frozen=True)
class Precision:
    """What the sub-networks and streams are made of.

    Attributes:
        dtype: Of parameters, input and output gradient.
        autocast: Whether the forward pass runs under autocast to bfloat16.
        about: The same in words.
    """

    dtype: torch.dtype
    autocast: bool
    about: str


def _with_norm(channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.InstanceNorm2d(channels, affine=True),
        nn.SiLU(),
    )


def _without_norm(channels: int, scale: float) -> nn.Module:
    convolution = nn.Conv2d(channels, channels, 3, padding=1)
    nn.init.kaiming_normal_(convolution.weight)
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    with torch.no_grad():
        convolution.weight.mul_(scale)
    return nn.Sequential(convolution, nn.SiLU())


NETWORKS: Mapping[str, Network] = {
    "norm": Network(
        _with_norm,
        "3x3 convolution, instance norm with affine weights, SiLU; the streams reach some 350 in "
        "size at depth 500",
    ),
    "no-norm-0.1": Network(
        lambda channels: _without_norm(channels, 0.1),
        "3x3 convolution with Kaiming's normal weights times 0.1, SiLU, no norm; the streams stay "
        "below 200 in size down to depth 500",
    ),
    "no-norm-0.3": Network(
        lambda channels: _without_norm(channels, 0.3),
        "the same with weights times 0.3, too large without a norm: the streams reach about a "
        "thousand at depth 100 and 10^18 at depth 500",
    ),
}

PRECISIONS: Mapping[str, Precision] = {
    "float32": Precision(torch.float32, False, "everything in float32"),
    "autocast": Precision(
        torch.float32,
        True,
        "float32 weights and streams, the forward pass under autocast to bfloat16; a library that "
        "leaves autocast out of its recomputation runs that in float32",
    ),
    "bfloat16": Precision(torch.bfloat16, False, "weights, input and output in bfloat16"),
}
