"""Taps: give out what flows between two layers of a sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from revgrad.autograd.inventory import known
from revgrad.autograd.layout import split_dense
from revgrad.autograd.protocol import Gradients, State
from revgrad.autograd.rewind import Rewind
from revgrad.fixed_point import to_float
from revgrad.nn.layer import ReversibleLayer


@known
class Tap(ReversibleLayer):
    """Gives out the state at its place in a `ReversibleSequence`, under a name.

    The sequence then returns its output and a dictionary of tapped values by name. Without a
    head the tapped value is the joined streams; the caller holds it anyway, so the tape starts
    from it anew in the backward pass (an anchor). With a head the value is the head's result,
    and the head is evaluated again in the backward pass: nothing of it is stored.

    Args:
        name: Key of the value in the dictionary.
        head: Module that maps the joined streams, (N, C, ...), to a tensor, for instance the
            logits of deep supervision. Side inputs of the sequence don't reach it.
        dim: Axis along which the streams are joined.
    """

    exact = True
    volume_preserving = True

    def __init__(self, name: str, head: nn.Module | None = None, dim: int = 1) -> None:
        super().__init__()
        if not isinstance(name, str) or not name:
            raise TypeError(f"name must be a non-empty string, not {name!r}")
        if head is not None and not isinstance(head, nn.Module):
            raise TypeError(f"head must be a torch.nn.Module, not {type(head).__name__}")
        self.name = name
        self.head = head
        self.dim = dim

    def forward(self, x1: Tensor, x2: Tensor, *args: Any, **kwargs: Any) -> State:
        """The streams as they are, and the tapped value."""
        joined = to_float(torch.cat((x1, x2), self.dim))
        return x1, x2, joined if self.head is None else self.run(self.head, joined)

    def inverse(self, y1: Tensor, y2: Tensor, *args: Any, **kwargs: Any) -> State:
        """The streams as they are."""
        return y1, y2

    def backward_step(
        self, rewind: Rewind, outputs: State, grads: Gradients, *args: Any, **kwargs: Any
    ) -> tuple[State, Gradients]:
        """Add the gradient of the tapped value to that of the streams."""
        *stream_grads, grad = grads
        if self.head is not None:
            head = rewind.evaluate(self.head, to_float(torch.cat(outputs, self.dim)), grad)
            head.take_unrounded()
            grad = head.pull()
        if grad is None:
            return outputs, tuple(stream_grads)
        parts = grad.split([x.shape[self.dim] for x in outputs], self.dim)
        return outputs, tuple(map(rewind.add, stream_grads, parts))

    def anchor(self, outputs: State) -> State:
        """The tapped value, if it is the joined streams: it is in memory anyway."""
        return super().anchor(outputs) if self.head is not None else outputs[2:]

    def from_anchor(self, stored: State, streams: State) -> State:
        """The streams out of the stored value."""
        if self.head is not None:
            return super().from_anchor(stored, streams)
        sizes = [x.shape[self.dim] for x in streams]
        return tuple(split_dense(stored[0], sizes, self.dim, copy=True))

    def extra_repr(self) -> str:
        return f"name={self.name!r}"
