"""The ways of running a network that the cases are held against plain autograd."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from revgrad.benchmarks.peers import ADAPTORS
from revgrad.benchmarks.reliability.networks import KINDS, Plan, build_plain, build_revgrad
from revgrad.benchmarks.reliability.setup import NotOfferedError

PEERS = ("checkpoint", "memcnn", "iunets", "revtorch", "revlib")


def _peer(name: str) -> Callable[[Plan], nn.Module]:
    def build(plan: Plan) -> nn.Module:
        if plan.kind != "sequence":
            raise NotOfferedError(f"{name} has no {plan.kind} network")
        return ADAPTORS[name].wrap(plan.outer)

    return build


BUILDERS: dict[str, Callable[[Plan], nn.Module]] = {
    "plain": build_plain,
    "revgrad": build_revgrad,
    **{name: _peer(name) for name in PEERS},
}


def kinds(engine: str) -> tuple[str, ...]:
    """The networks that an engine is tried on: peers have the plain sequence only."""
    return KINDS if engine in ("plain", "revgrad") else ("sequence",)
