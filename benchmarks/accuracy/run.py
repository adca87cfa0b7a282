"""A whole run: every variant on every network, in every precision, at every depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

from revgrad.benchmarks.accuracy.problem import Gradients, Problem, Wrap
from revgrad.benchmarks.accuracy.rounded import Rounded
from revgrad.benchmarks.accuracy.settings import Plan
from revgrad.benchmarks.peers import ADAPTORS, available, revgrad_exact
from revgrad.errors import ReversibleError

FLOAT, EXACT = "revgrad", "revgrad-exact"
VARIANTS = ("plain", FLOAT, EXACT, "memcnn", "iunets", "revtorch", "revlib")

MEASURED = "measured"
NOT_INSTALLED = "not installed"
LEFT_THE_RANGE = "left the range"
NOT_FINITE = "not finite"
FAILED = "error"

Errors = dict[str, float]
Show = Callable[[str], None]


@dataclass
class Outcome:
    """What one variant gave for one problem.

    Attributes:
        status: MEASURED, or why there are no figures.
        reason: What was said about it.
        same: Errors of "weights" and "input" against plain autograd of the same function.
        float64: The same against plain autograd of the network in float64.
    """

    status: str = MEASURED
    reason: str = ""
    same: Errors | None = None
    float64: Errors | None = None


@dataclass
class Row:
    """What was found out about one variant at one depth.

    Attributes:
        network: Its name.
        precision: Its name.
        variant: Name of the adaptor.
        depth: Number of sub-networks.
        total: Medians over the seeds; or the first of the outcomes that are not measured.
        seeds: The outcome for each seed.
    """

    network: str
    precision: str
    variant: str
    depth: int
    total: Outcome
    seeds: list[Outcome]


def number_of_steps(plan: Plan) -> int:
    """How often `run` reports progress."""
    return len(plan.networks) * len(plan.precisions) * len(plan.depths)


def run(plan: Plan, show: Show) -> list[Row]:
    """Measure everything; `show` is told after each step what it was."""
    rows = []
    for network in plan.networks:
        for precision in plan.precisions:
            for depth in plan.depths:
                problems = [
                    Problem(plan, network, precision, depth, seed) for seed in range(plan.seeds)
                ]
                found = [outcomes(plan, problem) for problem in problems]
                for variant in plan.variants:
                    seeds = [one[variant] for one in found]
                    rows.append(Row(network, precision, variant, depth, combined(seeds), seeds))
                show(f"{network}, {precision}, depth {depth}")
    return rows


def outcomes(plan: Plan, problem: Problem) -> dict[str, Outcome]:
    """What every variant gives for a problem."""
    plain = problem.gradients(ADAPTORS["plain"].wrap)
    in_float64 = problem.gradients_in_float64()
    found = {}
    for variant in plan.variants:
        wrap, same = ADAPTORS[variant].wrap, plain
        if variant == EXACT and available(variant):
            wrap = partial(revgrad_exact, fraction_bits=plan.fraction_bits)
            same = problem.gradients(partial(Rounded, fraction_bits=plan.fraction_bits))
        found[variant] = _outcome(variant, problem, wrap, same, in_float64)
    return found


def _outcome(
    variant: str, problem: Problem, wrap: Wrap, same: Gradients, in_float64: Gradients
) -> Outcome:
    state = available(variant)
    if not state:
        return Outcome(NOT_INSTALLED, state.reason)
    try:
        gradients = problem.gradients(wrap)
    except ReversibleError as error:
        return Outcome(LEFT_THE_RANGE if "fraction_bits=" in str(error) else FAILED, _said(error))
    except Exception as error:
        return Outcome(FAILED, _said(error))
    errors = gradients.errors(same), gradients.errors(in_float64)
    if not all(math.isfinite(value) for one in errors for value in one.values()):
        return Outcome(NOT_FINITE)
    return Outcome(same=errors[0], float64=errors[1])


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def combined(seeds: Sequence[Outcome]) -> Outcome:
    """Medians over the seeds, if all were measured."""
    for outcome in seeds:
        if outcome.status != MEASURED:
            return outcome
    return Outcome(
        same=_medians([outcome.same for outcome in seeds]),
        float64=_medians([outcome.float64 for outcome in seeds]),
    )


def _medians(errors: Sequence[Errors | None]) -> Errors:
    found = [one for one in errors if one is not None]
    return {name: median(one[name] for one in found) for name in found[0]}
