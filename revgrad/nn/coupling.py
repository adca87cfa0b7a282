"""Couplings: a sub-network of one stream changes the other. Here by a sum."""

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


class Coupling(ReversibleLayer):
    """What all couplings of two streams share: which sub-network changes which stream, and when.

    A subclass says how. With two sub-networks f changes the first stream, then g the second; with
    one, f changes the first, and the streams change places. Besides the streams there may be a
    log-determinant, that of both changes together.

    Args:
        f: The sub-network of the second stream.
        g: The sub-network of the first stream.
    """

    _formulas = ("forward", "inverse", "_coupled", "_uncoupled")

    def __init__(self, f: nn.Module, g: nn.Module | None = None) -> None:
        super().__init__()
        for name, module in (("f", f), ("g", g)):
            if not isinstance(module, nn.Module) and (name == "f" or module is not None):
                raise TypeError(f"{name} must be a torch.nn.Module, not {type(module).__name__}")
        self.f = f
        self.g = g

    def forward(self, x1: Tensor, x2: Tensor, *args: Any, **kwargs: Any) -> State:
        """Couple the streams."""
        y1, x2, *of_f = self._couple_f(x1, x2, *args, **kwargs)
        if self.g is None:
            return x2, y1, *of_f
        y1, y2, *of_g = self._couple_g(y1, x2, *args, **kwargs)
        return y1, y2, *map(torch.add, of_f, of_g)

    def inverse(self, y1: Tensor, y2: Tensor, *args: Any, **kwargs: Any) -> State:
        """Take the coupling back."""
        if self.g is None:
            x1, *of_f = self._uncoupled(y2, self.f, y1, "f", *args, **kwargs)
            return x1, y1, *of_f
        x2, *of_g = self._uncoupled(y2, self.g, y1, "g", *args, **kwargs)
        x1, *of_f = self._uncoupled(y1, self.f, x2, "f", *args, **kwargs)
        return x1, x2, *map(torch.add, of_g, of_f)

    def backward_step(
        self, rewind: Rewind, outputs: State, grads: Gradients, *args: Any, **kwargs: Any
    ) -> tuple[State, Gradients]:
        """The step back of a coupling with one sub-network."""
        exchanged = (*grads[1::-1], *grads[2:])
        return self._undo_f(rewind, outputs[::-1], exchanged, *args, **kwargs)

    def parts(self, forward: Callable[..., State]) -> tuple[Part, ...]:
        """The change by each sub-network."""
        if not self._belongs("_undone"):
            return super().parts(forward)
        if self.g is None:
            return (Part(self.f, forward, self.backward_step),)
        of_f = Part(self.f, self._couple_f, self._undo_f)
        return of_f, Part(self.g, self._couple_g, self._undo_g)

    def out_channels(self, channels: tuple[int, ...]) -> tuple[int, ...]:
        """One sub-network exchanges the streams."""
        return channels if self.g is not None else channels[::-1]

    def _couple_f(self, x1: Tensor, x2: Tensor, *args: Any, **kwargs: Any) -> State:
        y1, *further = self._coupled(x1, self.f, x2, "f", *args, **kwargs)
        return y1, x2, *further

    def _couple_g(self, y1: Tensor, x2: Tensor, *args: Any, **kwargs: Any) -> State:
        assert self.g is not None
        y2, *further = self._coupled(x2, self.g, y1, "g", *args, **kwargs)
        return y1, y2, *further

    def _coupled(
        self, stream: Tensor, module: nn.Module, x: Tensor, name: str, *args: Any, **kwargs: Any
    ) -> State:
        """The stream as the sub-network's value at `x` changes it, perhaps a log-determinant."""
        raise NotImplementedError

    def _uncoupled(
        self, stream: Tensor, module: nn.Module, x: Tensor, name: str, *args: Any, **kwargs: Any
    ) -> State:
        """The inverse of `_coupled`."""
        raise NotImplementedError

    def _undone(
        self,
        rewind: Rewind,
        stream: Tensor,
        module: nn.Module,
        x: Tensor,
        grads: Gradients,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The step back of `_coupled`. A subclass that overrides that alone gets the generic step.

        Args:
            rewind: See `backward_step`.
            stream: The changed stream, which may be written into.
            module: The sub-network that changed it.
            x: Its input.
            grads: Gradients of the changed stream and of what else `_coupled` gave.
            *args: Side inputs.
            **kwargs: Side inputs by keyword.

        Returns:
            The stream before, its gradient, and that of `x` by way of the sub-network.
        """
        raise NotImplementedError

    def _undo_f(
        self, rewind: Rewind, outputs: State, grads: Gradients, *args: Any, **kwargs: Any
    ) -> tuple[State, Gradients]:
        (y1, x2), (d1, d2, *further) = outputs, grads
        x1, dx1, way = self._undone(rewind, y1, self.f, x2, (d1, *further), *args, **kwargs)
        return (x1, x2), (dx1, rewind.add(d2, way))

    def _undo_g(
        self, rewind: Rewind, outputs: State, grads: Gradients, *args: Any, **kwargs: Any
    ) -> tuple[State, Gradients]:
        (y1, y2), (d1, d2, *further) = outputs, grads
        assert self.g is not None
        x2, dx2, way = self._undone(rewind, y2, self.g, y1, (d2, *further), *args, **kwargs)
        return (y1, x2), (rewind.add(d1, way), dx2)


@known
class AdditiveCoupling(Coupling):
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
    volume_preserving = True

    def _coupled(
        self, stream: Tensor, module: nn.Module, x: Tensor, name: str, *args: Any, **kwargs: Any
    ) -> State:
        fused = self.run_onto(stream, module, x, *args, **kwargs)
        if fused is not None:
            return (fused,)
        return (stream + self._fitting(self.run(module, x, *args, **kwargs), stream, name),)

    def _uncoupled(
        self, stream: Tensor, module: nn.Module, x: Tensor, name: str, *args: Any, **kwargs: Any
    ) -> State:
        return (stream - self._fitting(self.run(module, x, *args, **kwargs), stream, name),)

    def _undone(
        self,
        rewind: Rewind,
        stream: Tensor,
        module: nn.Module,
        x: Tensor,
        grads: Gradients,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        before, f = rewind.undo_sum(stream, module, x, grads[0], *args, **kwargs)
        return before, grads[0], f.pull()

    def _fitting(self, value: Tensor, stream: Tensor, name: str) -> Tensor:
        if value.shape != stream.shape:
            raise ReversibleError(
                f"the sub-network {name} gave shape {tuple(value.shape)}, but the stream that it "
                f"is added to has shape {tuple(stream.shape)}"
            )
        expect_fitting_type(value, stream, name)
        return value


def expect_fitting_type(value: Tensor, stream: Tensor, name: str) -> None:
    """Raise if the value of the sub-network `name` is of a wider type than the stream."""
    if torch.promote_types(value.dtype, stream.dtype) != stream.dtype:
        raise ReversibleError(
            f"the sub-network {name} gave {value.dtype}, which does not fit into a stream of "
            f"{stream.dtype}; convert its result, or the input of the sequence"
        )
