"""The networks that the cases run on: each once from torch's own modules, once by an engine."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import revgrad

Branch = Callable[[int], nn.Module]
Couplings = list[tuple[nn.Module, nn.Module]]
KINDS = ("sequence", "unet", "nested", "side")


@dataclass
class Plan:
    """The sub-networks of a network, which an engine puts together.

    Attributes:
        kind: One of `KINDS`.
        outer: Couplings (f, g) at full resolution; of a U-Net those before the skip.
        inner: Couplings of the lower level of a U-Net, or inside a sub-network if nested.
        last: Couplings after the skip of a U-Net.
    """

    kind: str
    outer: Couplings
    inner: Couplings = field(default_factory=list)
    last: Couplings = field(default_factory=list)

    def branches(self) -> list[nn.Module]:
        """All sub-networks, in one order for every engine."""
        return [m for pair in (*self.outer, *self.inner, *self.last) for m in pair]

    def copy(self) -> Plan:
        """The same with modules and weights of its own; modules that are shared stay shared."""
        return copy.deepcopy(self)


def make_plan(kind: str, branch: Branch, channels: int, dtype: torch.dtype) -> Plan:
    """Draw the sub-networks of a network of `channels` channels."""

    def couplings(count: int, c: int) -> Couplings:
        return [(branch(c).to(dtype), branch(c).to(dtype)) for _ in range(count)]

    half = channels // 2
    if kind == "unet":
        return Plan(kind, couplings(1, half), couplings(2, 2 * half), couplings(1, half))
    if kind == "nested":
        return Plan(kind, couplings(2, half), couplings(1, half // 2))
    if kind == "side":
        pairs = couplings(3, half)
        return Plan(kind, [(Scaled(f), Scaled(g)) for f, g in pairs])
    return Plan(kind, couplings(3, half))


class Scaled(nn.Module):
    """A sub-network whose result is scaled by a side input of shape (N, 1, 1, 1)."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor, scale: Tensor, *, power: int = 1) -> Tensor:
        """The scaled result."""
        return self.branch(x) * scale.to(x.dtype) ** power


# --- plain autograd, from torch's own modules -------------------------------------------------


class PlainSequence(nn.Module):
    """Additive couplings of the two halves of the channels."""

    def __init__(self, couplings: Couplings) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(m for pair in couplings for m in pair)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(N, C, ...) to (N, C, ...)."""
        if torch.is_autocast_enabled("cpu"):
            x = x.float()  # streams are float32 under autocast, whatever comes in
        x1, x2 = x.chunk(2, 1)
        for f, g in zip(self.couplings[::2], self.couplings[1::2], strict=True):
            x1 = x1 + f(x2, *args, **kwargs)
            x2 = x2 + g(x1, *args, **kwargs)
        return torch.cat((x1, x2), 1)


class PlainUNet(nn.Module):
    """Two levels with a skip of half the channels of each stream; Haar as a grouped convolution."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.first, self.lower, self.last = map(PlainSequence, (plan.outer, plan.inner, plan.last))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        streams = self.first(x).chunk(2, 1)
        c = streams[0].shape[1]
        skips = [s[:, : c // 2] for s in streams]
        with torch.autocast("cpu", enabled=False):
            down = torch.cat([haar(s[:, c // 2 :]) for s in streams], 1)
        lowered = self.lower(down)
        with torch.autocast("cpu", enabled=False):
            up = [haar_transposed(s) for s in lowered.chunk(2, 1)]
        joined = [torch.cat(pair, 1) for pair in zip(skips, up, strict=True)]
        result: Tensor = self.last(torch.cat(joined, 1))
        return result


def _haar_kernel(channels: int, like: Tensor) -> Tensor:
    rows = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    return rows.to(like).view(4, 1, 2, 2).repeat(channels, 1, 1, 1)


def haar(x: Tensor) -> Tensor:
    """Orthonormal Haar transform as a convolution: (N, C, H, W) to (N, 4 C, H / 2, W / 2)."""
    c = x.shape[1]
    return F.conv2d(x, _haar_kernel(c, x), stride=2, groups=c)


def haar_transposed(x: Tensor) -> Tensor:
    """The inverse of `haar`."""
    c = x.shape[1] // 4
    return F.conv_transpose2d(x, _haar_kernel(c, x), stride=2, groups=c)


def build_plain(plan: Plan) -> nn.Module:
    """The reference."""
    if plan.kind == "unet":
        return PlainUNet(plan)
    return PlainSequence(_nest(plan, PlainSequence) if plan.kind == "nested" else plan.outer)


def _nest(plan: Plan, sequence: Callable[[Couplings], nn.Module]) -> Couplings:
    """Put a sequence of the inner couplings behind the first sub-network."""
    (f, g), *others = plan.outer
    return [(nn.Sequential(f, sequence(plan.inner)), g), *others]


# --- revgrad ----------------------------------------------------------------------------------


def build_revgrad(plan: Plan) -> nn.Module:
    """The network as one reversible sequence."""
    if plan.kind == "unet":
        return revgrad.ReversibleSequence(
            [
                *_layers(plan.outer),
                revgrad.SplitSkip(),
                revgrad.HaarDownsample(2),
                *_layers(plan.inner),
                revgrad.HaarUpsample(2),
                revgrad.JoinSkip(),
                *_layers(plan.last),
            ]
        )
    if plan.kind == "nested":
        first, *others = _layers(_nest(plan, _sequence))
        return revgrad.ReversibleSequence([first, revgrad.ReversibleSequence(others)])
    return _sequence(plan.outer)


def _layers(couplings: Couplings) -> Sequence[nn.Module]:
    return [revgrad.AdditiveCoupling(f, g) for f, g in couplings]


def _sequence(couplings: Couplings) -> nn.Module:
    return revgrad.ReversibleSequence(_layers(couplings))
