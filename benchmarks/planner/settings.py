"""What is measured: everything that a figure depends on besides the machine."""

from dataclasses import dataclass

from revgrad.benchmarks.sequence.settings import Settings


@dataclass(frozen=True)
class Plan:
    """A whole run.

    Attributes:
        settings: The network's input, and how it runs.
        variants: Names of variants, see `revgrad.benchmarks.planner.networks`.
        budgets: Fractions from 0, everything is computed again, to 1, nothing is.
        depth: The number of sub-networks, an even one.
        repeats: Rounds of the time measurement.
    """

    settings: Settings
    variants: tuple[str, ...]
    budgets: tuple[float, ...]
    depth: int
    repeats: int
