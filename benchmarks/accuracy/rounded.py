"""The function of exact arithmetic in ordinary autograd, by nothing but torch's own means.

It shares no code with revgrad: streams are float64 tensors whose values lie on the grid, where
their sums are exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from revgrad.benchmarks.peers import Couplings


class Rounded(nn.Module):
    """Couplings whose streams are rounded to multiples of 2**-fraction_bits.

    Each sub-network's value is rounded when it is added, with the derivative of the identity. A
    stream's gradient is summed up in float32, as that of float32 streams is.

    Args:
        couplings: Pairs of sub-networks.
        fraction_bits: Binary digits behind the point.
    """

    def __init__(self, couplings: Couplings, fraction_bits: int) -> None:
        super().__init__()
        self.sub_networks = nn.ModuleList(module for pair in couplings for module in pair)
        self.scale = 2.0**fraction_bits

    def forward(self, x: Tensor) -> Tensor:
        a, b = (_summed(_OnGrid.apply(half, self.scale)) for half in x.chunk(2, dim=1))
        for module in self.sub_networks:
            value = module(_Seen.apply(b, x.dtype))
            a, b = b, _summed(a + _OnGrid.apply(value, self.scale))
        return torch.cat([_Seen.apply(a, x.dtype), _Seen.apply(b, x.dtype)], dim=1)


class _OnGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, scale: float) -> Tensor:
        ctx.dtype = value.dtype
        return torch.round(value.float() * scale).double() / scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.to(ctx.dtype), None


class _Seen(torch.autograd.Function):
    """A stream as a sub-network and the caller see it."""

    @staticmethod
    def forward(ctx: Any, stream: Tensor, dtype: torch.dtype) -> Tensor:
        return stream.float().to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.double(), None


def _summed(stream: Tensor) -> Tensor:
    """The same stream, whose gradient is rounded to float32 once all of it has come together."""
    stream.register_hook(lambda grad: grad.float().double())
    return stream
