"""What the tape asks of a layer, and what passes between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

State = tuple[Tensor, ...]
Gradients = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Part:
    """A piece of a layer that is a node of the graph by itself.

    A layer in several parts hands its gradients on part by part, so that the engine frees those
    of one part before the next one works.

    Attributes:
        module: The module whose parameters the part uses: the layer or a sub-network of it.
        forward: Maps input to output streams.
        backward_step: As `ReversibleLayer.backward_step`; None for the generic one.
        stores_input: Its input is stored, because it can't be computed back exactly.
    """

    module: nn.Module
    forward: Callable[..., State]
    backward_step: Callable[..., tuple[State, Gradients]] | None
    stores_input: bool = False


class Layer(Protocol):
    """A reversible layer as the tape sees it; `revgrad.nn.ReversibleLayer` documents each."""

    num_inputs: int
    num_outputs: int

    @property
    def is_exact(self) -> bool:
        """Whether fixed-point outputs give the fixed-point inputs back to the bit."""

    def __call__(self, *args: Any, **kwargs: Any) -> State:
        """Run the layer with its hooks."""

    def inverse(self, *args: Any, **kwargs: Any) -> State:
        """Compute the input streams from the output streams."""

    def parts(self, forward: Callable[..., State]) -> tuple[Part, ...]:
        """The pieces that become nodes."""

    def on_floats(self, function: Callable[..., State], count: int) -> Callable[..., State]:
        """`function`, which gives `count` streams, for fixed-point ones, computed on floats."""

    def anchor(self, outputs: State) -> State:
        """What to store to start anew from."""

    def from_anchor(self, stored: State, streams: State) -> State:
        """The output streams from what was stored."""
