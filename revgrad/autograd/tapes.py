"""The tapes of one forward pass: a stored layer ends one, and behind it starts the next."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import Tensor

from revgrad.autograd.closing import close, opened
from revgrad.autograd.observers import announce_stored
from revgrad.autograd.protocol import Layer, State
from revgrad.autograd.tape import Tape


class Tapes:
    """The tapes of a sequence, one after the other, with ordinary autograd between them.

    Each stores the state at its end, as the one tape of a sequence does.

    Args:
        name: Name of the sequence, for messages.
        contiguous_gradients: As for a `Tape`.

    Attributes:
        current: The tape that is running, if one is.
        longest: The most steps of any.
    """

    def __init__(self, name: str, contiguous_gradients: bool) -> None:
        self.current: Tape | None = None
        self.longest = 0
        self._name = name
        self._contiguous = contiguous_gradients
        self._tapped: dict[Hashable, Tensor] = {}

    def run(
        self,
        layer: Layer,
        where: str,
        state: State,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        anchor: bool,
        recompute: bool,
    ) -> tuple[State, State]:
        """Append a layer to the running tape, or to a new one; see `Tape.run`."""
        if self.current is None:
            self.current = Tape(self._name, self._contiguous)
        found = self.current.run(layer, where, state, args, kwargs, anchor, recompute)
        self.longest = max(self.longest, self.current.length)
        return found

    def tap(self, name: Hashable, value: Tensor) -> None:
        """Note a value that was tapped from the running tape, through whose end it must leave."""
        if self.current is not None:
            self._tapped[name] = value

    def leave(self, where: str, state: State, taps: dict[Hashable, Tensor]) -> State:
        """End the running tape, if one is, before a layer that is none of its nodes.

        Args:
            where: The layer.
            state: The state before it.
            taps: All tapped values; those of the running tape are replaced.

        Returns:
            The state, with the end of the tape in its history.
        """
        if self.current is None:
            return state
        announce_stored(where, state)
        outputs, values = close(
            self.current, None, state, tuple(self._tapped.values()), floats=False
        )
        taps.update(zip(self._tapped, values, strict=True))
        self.current, self._tapped = None, {}
        assert isinstance(outputs, tuple)
        return outputs

    def close(
        self,
        join_dim: int | None,
        state: State,
        taps: dict[Hashable, Tensor],
        *,
        floats: bool,
        factor: Tensor | None,
    ) -> Tensor | State:
        """End the last tape, see `closing.close`; tapped values are replaced in `taps`."""
        assert self.current is not None
        for name in taps.keys() - self._tapped.keys():
            taps[name] = opened((taps[name],), True, factor)[0]
        values = tuple(self._tapped.values())
        output, values = close(self.current, join_dim, state, values, floats=floats, factor=factor)
        taps.update(zip(self._tapped, values, strict=True))
        return output
