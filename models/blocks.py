"""Convolution units and rows of them, plain or reversible: what the networks are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from torch import nn

from revgrad.nn import AdditiveCoupling, ReversibleSequence

# A name, or a name and the keyword arguments of torch's module, as MONAI takes them.
Named = str | tuple[str, Mapping[str, Any]]

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_BATCH = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_INSTANCE = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leakyrelu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}
NORMS = ("batch", "instance", "group")


@dataclass(frozen=True)
class ConvStyle:
    """How the convolutions of a network are built.

    Attributes:
        spatial_dims: 1, 2 or 3.
        norm: "batch", "instance" or "group", or a pair of the name and keyword arguments of torch's
            module; None: no norm.
        act: "relu", "leakyrelu", "elu", "gelu" or "silu", or such a pair.
        bias: whether convolutions have a bias, also in front of a norm.
        reversible: whether rows of units are reversible sequences.
        couplings_per_unit: how many blocks of two additive couplings of half the channels stand for
            a unit. One, as in RevPHiSeg, has half the unit's weights; two have its weights.
        arithmetic: "float" or "exact", see `ReversibleSequence`.
    """

    spatial_dims: int
    norm: Named | None = "batch"
    act: Named = "relu"
    bias: bool = True
    reversible: bool = False
    couplings_per_unit: int = 1
    arithmetic: str = "float"

    def __post_init__(self) -> None:
        if self.couplings_per_unit < 1:
            raise ValueError(
                f"couplings_per_unit must be at least 1, not {self.couplings_per_unit!r}"
            )

    def conv(self, in_channels: int, out_channels: int, kernel_size: int = 1) -> nn.Module:
        """A convolution that keeps the size, without norm or activation."""
        layer = _CONV[self.spatial_dims]
        padding = kernel_size // 2
        return layer(in_channels, out_channels, kernel_size, padding=padding, bias=self.bias)

    def unit(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Sequential:
        """Convolution, norm, activation."""
        parts = [self.conv(in_channels, out_channels, kernel_size)]
        if self.norm is not None:
            parts.append(make_norm(self.norm, self.spatial_dims, out_channels))
        return nn.Sequential(*parts, make_act(self.act))

    def row(self, in_channels: int, out_channels: int, depth: int) -> nn.Sequential:
        """`depth` units in a row, the first of which may change the width.

        Reversible, it is a 1x1 unit where the width changes and `depth` blocks of
        y1 = x1 + F(x2), y2 = x2 + G(y1), whose F and G are units of half the channels
        (Gantenbein et al. 2020, section 2.3).
        """
        if not self.reversible:
            widths = [in_channels, *[out_channels] * depth]
            return nn.Sequential(*map(self.unit, widths, widths[1:]))
        if out_channels % 2:
            raise ValueError(f"{out_channels} channels have no halves for a reversible block")
        parts: list[nn.Module] = []
        if in_channels != out_channels:
            parts.append(self.unit(in_channels, out_channels, 1))
        half = out_channels // 2
        # One sub-network a coupling: between the two of a block, the first's input is let go.
        count = 2 * depth * self.couplings_per_unit
        layers = [AdditiveCoupling(self.unit(half, half)) for _ in range(count)]
        return nn.Sequential(*parts, ReversibleSequence(layers, arithmetic=self.arithmetic))


def are_positive(numbers: object) -> bool:
    """Whether it is a list or tuple of positive integers, at least one."""
    if not isinstance(numbers, Sequence) or not numbers:
        return False
    return all(isinstance(number, Integral) and int(number) >= 1 for number in numbers)


def refuse_wrong_channels(channels: object) -> None:
    """Raise a ValueError unless there is a level, and each has channels."""
    if not are_positive(channels):
        raise ValueError(
            "channels must be one positive number for each level, such as [16, 32, 64], not "
            f"{channels!r}"
        )


def make_norm(named: Named, spatial_dims: int, channels: int) -> nn.Module:
    """The norm of that name for so many channels."""
    name, options = split_name(named)
    if name == "batch":
        return _BATCH[spatial_dims](channels, **options)
    if name == "instance":
        return _INSTANCE[spatial_dims](channels, **options)
    if name == "group":
        return nn.GroupNorm(num_channels=channels, **{"num_groups": 8, **options})
    raise ValueError(f"norm must be one of {', '.join(NORMS)}, or None, not {name!r}")


def make_act(named: Named) -> nn.Module:
    """The activation of that name."""
    name, options = split_name(named)
    if name not in _ACTIVATIONS:
        raise ValueError(f"act must be one of {', '.join(_ACTIVATIONS)}, not {name!r}")
    return _ACTIVATIONS[name](**options)


def split_name(named: Named) -> tuple[str, dict[str, Any]]:
    """The name in lower case, and the keyword arguments."""
    name, options = (named, {}) if isinstance(named, str) else named
    return name.lower(), dict(options)
