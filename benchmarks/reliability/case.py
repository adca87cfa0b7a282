"""A case: something that users do, compared with plain autograd.

A case is a function of a `Setup`. It returns if the engine is right, raises `MismatchError` if it
is silently wrong, and any other exception if it refuses. `refuses` marks the cases where revgrad
answers with an error that names the layer, by design.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from revgrad.benchmarks.reliability.networks import KINDS
from revgrad.benchmarks.reliability.setup import Setup


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        name: What the user does.
        run: The function.
        kinds: The networks that it makes sense for.
        refuses: Whether revgrad refuses with an error that names the layer.
    """

    name: str
    run: Callable[[Setup], None]
    kinds: tuple[str, ...]
    refuses: bool


CASES: list[Case] = []


def case(
    name: str, kinds: tuple[str, ...] = KINDS, refuses: bool = False
) -> Callable[[Callable[[Setup], None]], Callable[[Setup], None]]:
    """Enter a function into the table."""

    def enter(run: Callable[[Setup], None]) -> Callable[[Setup], None]:
        CASES.append(Case(name, run, kinds, refuses))
        return run

    return enter


def conv(*more: Callable[[int], nn.Module]) -> Callable[[int], nn.Module]:
    """A sub-network: a convolution and what follows."""

    def make(channels: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), *(m(channels) for m in more)
        )

    return make


def tanh(channels: int) -> nn.Module:
    """An activation that does not mind rounding."""
    return nn.Tanh()
