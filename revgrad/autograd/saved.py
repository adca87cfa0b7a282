"""What nodes store with `save_for_backward`, and how they get it back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from revgrad.autograd.layout import alias, memory_of
from revgrad.autograd.protocol import Gradients, State
from revgrad.errors import ReversibleError
from revgrad.fixed_point import FixedPoint


def saved_tensors(ctx: Any, what: str) -> State:
    """What a node stored; `what` names it if it was changed since."""
    try:
        saved: State = ctx.saved_tensors
        return saved
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise ReversibleError(
            f"{what} was changed in place between the forward and the backward pass. The backward "
            "pass computes activations from it, so change it after backward, or make a new "
            f"tensor (x = x + 1 instead of x += 1). PyTorch says: {error}"
        ) from error


class StoredStreams:
    """Streams that a node stores, floats or fixed-point.

    Of fixed-point ones the integers are stored too, in the same memory: hooks on saved tensors,
    such as `save_on_cpu`, keep those to the bit, while of the streams they keep floats.
    """

    def __init__(self, streams: State) -> None:
        self._grids = [s.grid for s in streams if isinstance(s, FixedPoint)]

    @staticmethod
    def tensors(streams: State) -> State:
        """What to hand to `save_for_backward`."""
        return *streams, *(memory_of(s) for s in streams if isinstance(s, FixedPoint))

    def restored(self, saved: State) -> State:
        """The streams. With `create_graph=True` they come with their history."""
        if not self._grids:
            return saved
        streams, integers = saved[: len(self._grids)], saved[len(self._grids) :]
        if not torch.is_grad_enabled():
            # Tensors of their own, so that `is_shared` sees whoever else holds the integers: the
            # graph, if it is retained, or a hook.
            return tuple(
                FixedPoint(n.detach(), g) for n, g in zip(integers, self._grids, strict=True)
            )
        if not all(isinstance(s, FixedPoint) for s in streams):
            raise ReversibleError(
                "hooks on saved tensors, such as save_on_cpu, and create_graph=True can't be "
                'combined in exact arithmetic; use arithmetic="float" there'
            )
        return streams


def behind(stored: State, streams: State) -> State:
    """Stored tensors whose history leads through the end of the tape, by way of `streams`.

    In a double backward pass, the end must come first: it feeds the tape.
    """
    found: State = _Behind.apply(len(stored), *stored, *streams)
    return found


class _Behind(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> State:
        ctx.missing = len(tensors) - count
        ctx.set_materialize_grads(False)
        return tuple(map(alias, tensors[:count]))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Gradients:
        return None, *grads, *(None,) * ctx.missing
