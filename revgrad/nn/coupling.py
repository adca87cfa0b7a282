"""Additive coupling: a sub-network of one stream is added to the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from revgrad.autograd.inventory import known
from revgrad.autograd.protocol import Gradients, Part, State
from revgrad.autograd.rewind import Rewind
from revgrad.errors import ReversibleError
from revgrad.nn.layer import ReversibleLayer


@known
class AdditiveCoupling(ReversibleLayer):
    """Additive coupling of two streams.

    With two sub-networks (NICE, Dinh et al. 2015; RevNet, Gomez et al. 2017, eq. 6)::

        y1 = x1 + f(x2)
        y2 = x2 + g(y1)

    With one, the streams change places, so that a row of couplings transforms both in turn
    (iUNet, Etmann et al. 2020)::

        y1 = x2
        y2 = x1 + f(x2)

    Args:
        f: Any module that maps the second stream to a tensor of the shape of the first. It must
            not change its input in place.
        g: Any module that maps the first stream to a tensor of the shape of the second.

    Shapes:
        x1: (N, C1, ...), x2: (N, C2, ...); two sub-networks keep the order of the streams, one
        exchanges it.

    Raises:
        ReversibleError: If a sub-network's result does not fit the stream it is added to.
    """

    exact = True

    def __init__(self, f: nn.Module, g: nn.Module | None = None) -> None:
        super().__init__()
        for name, module in (("f", f), ("g", g)):
            if not isinstance(module, nn.Module) and (name == "f" or module is not None):
                raise TypeError(f"{name} must be a torch.nn.Module, not {type(module).__name__}")
        self.f = f
        self.g = g

    def forward(self, x1: Tensor, x2: Tensor, *args: Any, **kwargs: Any) -> State:
        """Couple the streams."""
        y1, x2 = self._add_f(x1, x2, *args, **kwargs)
        return (x2, y1) if self.g is None else self._add_g(y1, x2, *args, **kwargs)

    def inverse(self, y1: Tensor, y2: Tensor, *args: Any, **kwargs: Any) -> State:
        """Take the coupling back."""
        if self.g is None:
            y1, x2 = y2, y1
        else:
            x2 = y2 - self._fitting(self.run(self.g, y1, *args, **kwargs), y2, "g")
        x1 = y1 - self._fitting(self.run(self.f, x2, *args, **kwargs), y1, "f")
        return x1, x2

    def backward_step(
        self, rewind: Rewind, outputs: State, grads: Gradients, *args: Any, **kwargs: Any
    ) -> tuple[State, Gradients]:
        """The step back of a coupling with one sub-network."""
        return self._undo_f(rewind, outputs[::-1], grads[::-1], *args, **kwargs)

    def parts(self, forward: Callable[..., State]) -> tuple[Part, ...]:
        """The addition of each sub-network."""
        if not self._belongs("parts"):
            return super().parts(forward)
        if self.g is None:
            return (Part(self.f, forward, self.backward_step),)
        return Part(self.f, self._add_f, self._undo_f), Part(self.g, self._add_g, self._undo_g)

    def _add_f(self, x1: Tensor, x2: Tensor, *args: Any, **kwargs: Any) -> State:
        return self._sum(x1, self.f, x2, "f", *args, **kwargs), x2

    def _add_g(self, y1: Tensor, x2: Tensor, *args: Any, **kwargs: Any) -> State:
        assert self.g is not None
        return y1, self._sum(x2, self.g, y1, "g", *args, **kwargs)

    def _sum(
        self, stream: Tensor, module: nn.Module, x: Tensor, name: str, *args: Any, **kwargs: Any
    ) -> Tensor:
        fused = self.run_onto(stream, module, x, *args, **kwargs)
        if fused is not None:
            return fused
        return stream + self._fitting(self.run(module, x, *args, **kwargs), stream, name)

    def _undo_f(
        self, rewind: Rewind, outputs: State, grads: Gradients, *args: Any, **kwargs: Any
    ) -> tuple[State, Gradients]:
        (y1, x2), (d1, d2) = outputs, grads
        x1, f = rewind.undo_sum(y1, self.f, x2, d1, *args, **kwargs)
        return (x1, x2), (d1, rewind.add(d2, f.pull()))

    def _undo_g(
        self, rewind: Rewind, outputs: State, grads: Gradients, *args: Any, **kwargs: Any
    ) -> tuple[State, Gradients]:
        (y1, y2), (d1, d2) = outputs, grads
        assert self.g is not None
        x2, g = rewind.undo_sum(y2, self.g, y1, d2, *args, **kwargs)
        return (y1, x2), (rewind.add(d1, g.pull()), d2)

    def out_channels(self, channels: tuple[int, ...]) -> tuple[int, ...]:
        """One sub-network exchanges the streams."""
        return channels if self.g is not None else channels[::-1]

    def _fitting(self, value: Tensor, stream: Tensor, name: str) -> Tensor:
        if value.shape != stream.shape:
            raise ReversibleError(
                f"the sub-network {name} gave shape {tuple(value.shape)}, but the stream that it "
                f"is added to has shape {tuple(stream.shape)}"
            )
        if torch.promote_types(value.dtype, stream.dtype) != stream.dtype:
            raise ReversibleError(
                f"the sub-network {name} gave {value.dtype}, which does not fit into a stream of "
                f"{stream.dtype}; convert its result, or the input of the sequence"
            )
        return value
