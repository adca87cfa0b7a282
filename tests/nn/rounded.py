"""The function of an exact sequence in ordinary PyTorch: the oracle of the tests.

Nothing of revgrad is used. Streams are float64, which holds every 32-bit fixed-point number, so
that ordinary sums are exact. Where float32 streams would round a gradient, a hook does.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass
class Rounded:
    """Runs descriptions of layers (see `STEPS`) on streams rounded to a grid.

    Args:
        steps: Pairs of a name and the sub-networks of a layer.
        bits: Fraction bits.
        see: The type in which sub-networks see the streams.
        layout: Memory format of the streams.
        contiguous: Whether gradients of a batch of one are contiguous all the same. Either is
            right for modules that read both; the bits differ.
    """

    steps: list[tuple[str, list[nn.Module]]]
    bits: int = 20
    see: torch.dtype = torch.float32
    layout: torch.memory_format = torch.contiguous_format
    contiguous: bool = True
    skips: list[Any] = field(default_factory=list)

    def __call__(self, x):
        half = (x.shape[1] + 1) // 2
        a, b = (self.stream(self.round(part)) for part in x.split([half, x.shape[1] - half], 1))
        for name, modules in self.steps:
            a, b = STEPS[name](self, a, b, *modules)
            # A node of its own for a stream that passes: float32 sums two gradients at a time.
            a, b = (self.stream(t.view_as(t)) for t in (a, b))
        return torch.cat([self.seen(a), self.seen(b)], 1)

    def add(self, stream, module, other):
        """The stream plus the rounded value of a module."""
        return self.stream(stream + self.round(module(self.seen(other))))

    def round(self, value):
        return Round.apply(value, self.bits)

    def seen(self, stream):
        """An identity node at a sub-network's input: its gradients are summed up there first."""
        return See.apply(stream, self.see, self.layout)

    def stream(self, x):
        kind = torch.promote_types(self.see, torch.float32)
        if x.requires_grad:
            # PyTorch's instance norm is wrong for channels-last gradients of a batch of one.
            one = self.contiguous and len(x) == 1
            layout = torch.contiguous_format if one else self.layout
            x.register_hook(lambda g: laid_out(g.to(kind).double(), layout))
        return x


def laid_out(x, layout):
    """The strides of a fresh tensor: those of axes of size 1 change the bits of convolutions."""
    return torch.empty(x.shape, dtype=x.dtype, memory_format=layout).copy_(x)


class Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bits):
        ctx.dtype = x.dtype
        return torch.round(x.double() * 2.0**bits) / 2.0**bits

    @staticmethod
    def backward(ctx, grad):
        return grad.to(ctx.dtype), None


class See(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dtype, layout):
        # By way of float32 to a half-precision type: the conversion that revgrad documents.
        return laid_out(x.to(torch.promote_types(dtype, torch.float32)).to(dtype), layout)

    @staticmethod
    def backward(ctx, grad):
        return grad.double(), None, None


class Haar(torch.autograd.Function):
    """Two-dimensional, on the grid; the gradient is that of the unrounded transform."""

    @staticmethod
    def forward(ctx, x, bits, down, kind):
        ctx.down, ctx.kind = down, kind
        n = (x * 2.0**bits).long()
        n = blocks(n) if down else n.unflatten(1, (-1, 4))
        a, b, c, d = n.unbind(2)
        m = torch.div(b + c + d - a, 2, rounding_mode="floor")
        n = torch.stack([a + m, c - m, b - m, d - m], 2)
        n = n.flatten(1, 2) if down else unblocks(n)
        return n.double() / 2.0**bits

    @staticmethod
    def backward(ctx, grad):
        g = grad.to(ctx.kind)
        g = g.unflatten(1, (-1, 4)) if ctx.down else blocks(g)
        a, b, c, d = g.unbind(2)
        if ctx.down:  # down sums first and scales then, so its gradient scales first
            a, b, c, d = (0.5 * t for t in (a, b, c, d))
            a, b, c, d = a + b, a - b, c + d, c - d
            a, b, c, d = a + c, b + d, a - c, b - d
        else:
            a, b, c, d = a + c, b + d, a - c, b - d
            a, b, c, d = (0.5 * t for t in (a + b, a - b, c + d, c - d))
        g = torch.stack([a, b, c, d], 2)
        g = unblocks(g) if ctx.down else g.flatten(1, 2)
        return g.double(), None, None, None


def blocks(x):
    """(N, C, H, W) to (N, C, 4, H / 2, W / 2)."""
    return nn.functional.pixel_unshuffle(x, 2).unflatten(1, (x.shape[1], 4))


def unblocks(x):
    return nn.functional.pixel_shuffle(x.flatten(1, 2), 2)


def _two(net, a, b, f, g):
    a = net.add(a, f, b)
    return a, net.add(b, g, a)


def _one(net, a, b, f):
    return b, net.add(a, f, b)


def _haar(down):
    def step(net, a, b):
        kind = torch.promote_types(net.see, torch.float32)
        return tuple(net.stream(Haar.apply(x, net.bits, down, kind)) for x in (a, b))

    return step


def _split(net, a, b):
    skips, rests = zip(
        *(x.split([x.shape[1] // 2, x.shape[1] - x.shape[1] // 2], 1) for x in (a, b)), strict=True
    )
    net.skips.append(skips)
    return rests


def _join(net, a, b):
    return tuple(torch.cat(pair, 1) for pair in zip(net.skips.pop(), (a, b), strict=True))


STEPS = {
    "two": _two,
    "one": _one,
    "swap": lambda net, a, b: (b, a),
    "haar_down": _haar(True),
    "haar_up": _haar(False),
    "shuffle_down": lambda net, a, b: tuple(nn.functional.pixel_unshuffle(x, 2) for x in (a, b)),
    "shuffle_up": lambda net, a, b: tuple(nn.functional.pixel_shuffle(x, 2) for x in (a, b)),
    "split": _split,
    "join": _join,
}
