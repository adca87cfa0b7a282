"""All cases, in the order of the table: things that users do, compared with plain autograd."""

from revgrad.benchmarks.reliability.case import CASES, Case

from revgrad.benchmarks.reliability.cases import (  # isort: skip
    precision,
    state,
    parameters,
    inputs,
    backward,
    hooks,
    tools,
    faults,
    interface,
)

__all__ = [
    "CASES",
    "Case",
    "backward",
    "faults",
    "hooks",
    "inputs",
    "interface",
    "parameters",
    "precision",
    "state",
    "tools",
]
