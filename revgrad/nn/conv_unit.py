"""A convolution with the norm, dropout and activation behind it, and its twin of another width."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from revgrad.nn.surgery import changed, has_hooks, order_of_children

CONVOLUTIONS = nn.modules.conv._ConvNd
_PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_STATISTICS = ("eps", "momentum", "affine", "track_running_stats")
_BATCHED = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU),
    *(nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardtanh, nn.Softplus, nn.Tanh, nn.Sigmoid),
)


def kind_of(module: nn.Module) -> str | None:
    """Which part of a unit one of torch's modules is; None for others, subclasses too."""
    kinds = {"convolution": _PLAIN, "norm": (*_BATCHED, nn.GroupNorm), "dropout": _DROPOUTS}
    for kind, types in {**kinds, "activation": _ACTIVATIONS}.items():
        if type(module) in types:
            return kind
    return None


def parts_of(module: nn.Module) -> tuple[nn.Module, ...] | None:
    """The parts that a module runs one after the other, without identities.

    None if it contains anything but parts of a unit, or hides what it does with them.
    """
    if type(module) is nn.Identity and not has_hooks(module):
        return ()
    if kind_of(module) is not None or isinstance(module, CONVOLUTIONS):
        return (module,)
    order = order_of_children(module)
    if order is None or has_hooks(module) or any(True for _ in _own_tensors(module)):
        return None
    found = [parts_of(module.get_submodule(name)) for name in order]
    parts = tuple(part for inner in found if inner is not None for part in inner)
    return parts if None not in found else None


def _own_tensors(module: nn.Module) -> Iterator[str]:
    yield from module._parameters
    yield from module._buffers


@dataclass(frozen=True)
class ConvUnit:
    """A convolution and what follows it.

    Attributes:
        parts: The convolution, then at most one norm, one dropout and one activation in any order.
    """

    parts: tuple[nn.Module, ...]

    @property
    def convolution(self) -> Any:
        """The first part."""
        return self.parts[0]

    @property
    def in_channels(self) -> int:
        return int(self.convolution.in_channels)

    @property
    def out_channels(self) -> int:
        return int(self.convolution.out_channels)

    def extended(self, parts: tuple[nn.Module, ...]) -> ConvUnit | None:
        """The unit with more parts behind; None if it has one of their kind already."""
        kinds = [kind_of(part) for part in (*self.parts[1:], *parts)]
        fits = {None, "convolution"}.isdisjoint(kinds) and len(set(kinds)) == len(kinds)
        return ConvUnit((*self.parts, *parts)) if fits else None

    def obstacle(self) -> str:
        """Why no reversible sequence can stand for it; empty if one can."""
        if type(self.convolution) not in _PLAIN:
            if getattr(self.convolution, "transposed", False):
                return "transposed"
            name = type(self.convolution).__name__
            return f"a {name}, which is none of torch's plain convolutions"
        for part in self.parts:
            if changed(part):
                return f"its {type(part).__name__} {changed(part)}"
            kinds = {type(p) for p in part.parameters()} - {nn.Parameter}
            if kinds:
                return f"its weight is a {kinds.pop().__name__}: convert before it is made one"
            if any(not p.requires_grad for p in part.parameters()):
                return "frozen: fresh weights would take the place of trained ones"
        return _obstacle(self.convolution)

    def twin(self, channels: int) -> nn.Sequential:
        """A fresh unit of the same kinds from `channels` to `channels`."""
        return nn.Sequential(*(_resized(part, channels) for part in self.parts))

    def __str__(self) -> str:
        kernel = "x".join(map(str, self.convolution.kernel_size))
        first, *others = (type(part).__name__ for part in self.parts)
        return ", ".join([f"{first} {kernel}", *others])


def _obstacle(conv: Any) -> str:
    if set(conv.stride) != {1}:
        return "strided"
    if set(conv.dilation) != {1}:
        return "dilated"
    if conv.groups != 1:
        return "grouped"
    kernel = conv.kernel_size
    padding = (0,) * len(kernel) if conv.padding == "valid" else conv.padding
    if padding != "same" and any(2 * p != k - 1 for p, k in zip(padding, kernel, strict=True)):
        return "changes the size of the image"
    if conv.out_channels % 2:
        return f"an odd number of channels ({conv.out_channels}) has no halves"
    return ""


def _resized(part: Any, channels: int) -> nn.Module:
    """A fresh module like `part`, in device, type and mode too, of another width."""
    # A norm without weights still has statistics.
    tensors = (getattr(part, key, None) for key in ("weight", "running_mean"))
    first = next((t for t in tensors if t is not None), None)
    place = {} if first is None else {"device": first.device, "dtype": first.dtype}
    made: nn.Module
    if type(part) in _PLAIN:
        options = {key: getattr(part, key) for key in ("kernel_size", "padding", "padding_mode")}
        has_bias = part.bias is not None
        made = type(part)(channels, channels, **options, bias=has_bias, **place)
    elif type(part) is nn.GroupNorm:
        groups = math.gcd(part.num_groups, channels)
        made = nn.GroupNorm(groups, channels, part.eps, part.affine, **place)
    elif type(part) in _BATCHED:
        made = type(part)(channels, **{key: getattr(part, key) for key in _STATISTICS}, **place)
    elif type(part) is nn.PReLU:
        made = nn.PReLU(1 if part.num_parameters == 1 else channels, **place)
    else:
        made = copy.deepcopy(part)
    if hasattr(part, "bias") and part.weight is not None and part.bias is None:
        # Norms of older versions of torch take no such argument.
        made.register_parameter("bias", None)
    if isinstance(made, nn.SyncBatchNorm):
        made.process_group = part.process_group
    return made.train(part.training)
