"""What the streams of a sequence are made of: floats, or fixed-point numbers with exact sums."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from revgrad.autograd.protocol import State
from revgrad.dataless import autocast_is_on
from revgrad.errors import ReversibleError
from revgrad.fixed_point import FixedPoint, Grid, to_fixed
from revgrad.fixed_point.range_watch import RangeWatch, raise_pending

ARITHMETICS = ("float", "exact")
CHECKS = ("async", "sync")

# The depth from which on drift makes gradients three to five times as wrong as they are in plain
# autograd (`revgrad bench accuracy`, the network with instance norm).
_DRIFTS = {"half-precision streams": 50, "autocast": 100}


def refuse_unknown(arithmetic: Any, fraction_bits: Any, check: Any) -> None:
    """Raise if the options of a sequence are none."""
    for name, value, accepted in (
        ("arithmetic", arithmetic, ARITHMETICS),
        ("check", check, CHECKS),
    ):
        if value not in accepted:
            raise ValueError(f"{name} must be one of {accepted}, not {value!r}")
    Grid(fraction_bits)


def new_watch(arithmetic: str, fraction_bits: int, check: str) -> RangeWatch | None:
    """The watch over a forward pass in exact arithmetic; raises what earlier ones found."""
    refuse_unknown(arithmetic, fraction_bits, check)  # they may be changed at any time
    if arithmetic == "float":
        return None
    raise_pending()
    if torch._C._are_functorch_transforms_active() or forward_mode_is_on():
        raise ReversibleError(
            "torch.func transforms and forward-mode differentiation do not know fixed-point "
            'numbers; use arithmetic="float" for them'
        )
    return RangeWatch(at_once=check == "sync")


def entered(streams: State, fraction_bits: int, watch: RangeWatch | None) -> State:
    """The streams in the sequence's arithmetic."""
    if watch is None:
        if any(isinstance(s, FixedPoint) for s in streams):
            raise TypeError('fixed-point input needs a sequence with arithmetic="exact"')
        return streams
    return tuple(_fixed(s, fraction_bits, watch) for s in streams)


def _fixed(stream: Tensor, fraction_bits: int, watch: RangeWatch) -> Tensor:
    if not isinstance(stream, FixedPoint):
        if not stream.is_floating_point():
            raise ReversibleError(
                f"the input of the sequence is {stream.dtype}; exact arithmetic takes real floats"
            )
        return to_fixed(stream, Grid(fraction_bits, stream.dtype), "the input of the sequence")
    if stream.grid.fraction_bits != fraction_bits:
        raise ValueError(
            f"the input has fraction_bits={stream.grid.fraction_bits}, but the sequence has "
            f"fraction_bits={fraction_bits}"
        )
    known: FixedPoint = torch.ops.aten.alias(stream)
    known.bound = None  # of whatever it was before
    watch.bound_of(known)
    return known


def warn_of_drift(streams: State, depth: int) -> None:
    """Tell the user of a deep sequence of floats that its gradients are off.

    Args:
        streams: The streams.
        depth: The number of steps of the tape.
    """
    kind = None
    if streams[0].dtype in (torch.bfloat16, torch.float16):
        kind = "half-precision streams"
    elif autocast_is_on(streams[0].device):
        kind = "autocast"
    if kind is not None and depth >= _DRIFTS[kind]:
        warnings.warn(
            f"a reversible sequence of {depth} steps with {kind} in floating-point arithmetic: at "
            "this depth, the rounding of computing back makes the gradients several times as "
            'wrong as half precision does. Use arithmetic="exact", or anchor_every=n',
            UserWarning,
            stacklevel=6,
        )


def forward_mode_is_on() -> bool:
    """Whether forward-mode differentiation is on."""
    return torch.autograd.forward_ad._current_level >= 0
