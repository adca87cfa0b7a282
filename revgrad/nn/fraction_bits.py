"""How many binary digits behind the point the streams of a network have room for."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from revgrad.errors import ReversibleError
from revgrad.fixed_point import to_float
from revgrad.fixed_point.grid import MAX_FRACTION_BITS, Grid
from revgrad.nn.layer import ReversibleLayer
from revgrad.nn.sequence import ReversibleSequence


@dataclass(frozen=True)
class FractionBits:
    """A suggestion for `ReversibleSequence(..., arithmetic="exact", fraction_bits=...)`.

    Attributes:
        fraction_bits: The suggestion.
        largest: The largest number, in size, that was seen in a stream.
        where: The layer at which it was.
    """

    fraction_bits: int
    largest: float
    where: str

    def __str__(self) -> str:
        grid = Grid(self.fraction_bits)
        return (
            f"fraction_bits={self.fraction_bits}: streams reach {self.largest:.4g} (at "
            f"{self.where}) and may reach {grid.limit:g}; their steps are {grid.step:.2g}"
        )


def suggest_fraction_bits(
    module: nn.Module, *args: Any, headroom: float = 8.0, **kwargs: Any
) -> FractionBits:
    """Find out from data how large the streams of a network become.

    Runs a copy of the network forward, without gradients and in floating-point arithmetic. ::

        bits = revgrad.suggest_fraction_bits(net, x).fraction_bits

    Args:
        module: A `ReversibleSequence` or a network with some inside.
        *args: Its input, as in `module(*args)`. Take a typical batch; of several batches take the
            smallest suggestion.
        headroom: How many times larger than now the streams may become in training.
        **kwargs: More input.

    Raises:
        ReversibleError: If a stream is not finite, or too large for whole numbers of 32 bits.
        ValueError: If the module has no reversible layers, or `headroom` is less than 1.
    """
    if not headroom >= 1:
        raise ValueError(f"headroom must be at least 1, not {headroom!r}")
    twin = copy.deepcopy(module)
    sizes: dict[str, float] = {}

    def look(where: str, *tensors: Any) -> None:
        streams = (t for t in tree_leaves(tensors) if isinstance(t, Tensor) and t.numel())
        found = [t.detach().abs().max().float() for t in streams]
        if found:
            sizes[where] = max(sizes.get(where, 0.0), torch.stack(found).max().item(), key=_rank)

    for name, inner in twin.named_modules():
        if isinstance(inner, ReversibleSequence):
            inner.arithmetic = "float"
        elif isinstance(inner, ReversibleLayer):
            where = f"{name or 'the layer'} ({type(inner).__name__})"
            inner.register_forward_hook(
                lambda layer, given, result, where=where: look(
                    where, given[: layer.num_inputs], result[: layer.num_outputs]
                )
            )
    args, kwargs = tree_map(lambda a: to_float(a) if isinstance(a, Tensor) else a, (args, kwargs))
    with torch.no_grad(), torch.random.fork_rng():
        twin(*args, **kwargs)
    return _suggestion(sizes, headroom)


def _suggestion(sizes: dict[str, float], headroom: float) -> FractionBits:
    if not sizes:
        raise ValueError("no reversible layer ran: the module has none, or does not use them")
    where, largest = max(sizes.items(), key=lambda item: _rank(item[1]))
    if not math.isfinite(largest):
        raise ReversibleError("the streams are not finite (NaN or infinite)", where)
    # Less than 2**digits, strictly, and with room for what rounding adds.
    digits = math.floor(math.log2(max(largest * headroom * 1.00001, 0.5))) + 1
    bits = 31 - digits
    if bits < 0:
        raise ReversibleError(
            f"the streams reach {largest:.4g}, which fixed-point numbers of 32 bits can't hold "
            "with this headroom; normalise the sub-networks",
            where,
        )
    return FractionBits(min(bits, MAX_FRACTION_BITS), largest, where)


def _rank(size: float) -> float:
    """NaN as the largest of all."""
    return math.inf if math.isnan(size) else size
