"""The options of `revgrad bench planner`, and what it does."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from revgrad.benchmarks.command import carry_out
from revgrad.benchmarks.planner import report
from revgrad.benchmarks.planner.networks import ABOUT
from revgrad.benchmarks.planner.run import number_of_steps, run
from revgrad.benchmarks.planner.settings import Plan
from revgrad.benchmarks.sequence.settings import Settings

_BUDGETS, _QUICK_BUDGETS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0), (0.0, 0.5, 1.0)
_DEPTH, _QUICK_DEPTH = 20, 8
_REPEATS, _QUICK_REPEATS = 7, 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `revgrad bench planner`."""
    add = parser.add_argument
    add("--quick", action="store_true", help="a tiny network: a trial of the benchmark itself")
    add("--variants", nargs="+", choices=ABOUT, metavar="NAME", help=", ".join(ABOUT))
    add("--budgets", nargs="+", type=_fraction, help="fractions, default 0 0.1 0.2 0.4 0.6 0.8 1")
    add("--depth", type=_even, help="number of sub-networks, default 20")
    add("--channels", type=_even, help="channels of the input, default 64")
    add("--size", type=int, help="pixels along each axis, default 128")
    add("--batch", type=int, default=1, help="default 1")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="default float32")
    add("--channels-last", action="store_true", help="memory format, default contiguous")
    add("--threads", type=int, default=torch.get_num_threads(), help="default: as PyTorch has it")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="default cpu")
    add("--repeats", type=int, help="rounds of the time measurement, default 7")
    add("--output", type=Path, default=Path("revgrad-results"), help="default revgrad-results")


def main(args: argparse.Namespace) -> int:
    """Measure, print the tables and write the files."""
    plan = plan_of(args)
    return carry_out(plan, plan.settings.device, number_of_steps(plan), run, report, args.output)


def plan_of(args: argparse.Namespace) -> Plan:
    """Fill in what was not given."""
    quick = args.quick
    settings = Settings(
        channels=args.channels or (8 if quick else 64),
        size=args.size or (32 if quick else 128),
        batch=args.batch,
        dtype=args.dtype,
        channels_last=args.channels_last,
        device=args.device,
        threads=args.threads,
    )
    return Plan(
        settings,
        variants=tuple(dict.fromkeys(args.variants or ABOUT)),
        budgets=tuple(sorted(set(args.budgets or (_QUICK_BUDGETS if quick else _BUDGETS)))),
        depth=args.depth or (_QUICK_DEPTH if quick else _DEPTH),
        repeats=args.repeats or (_QUICK_REPEATS if quick else _REPEATS),
    )


def _fraction(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} does not lie between 0 and 1")
    return number


def _even(text: str) -> int:
    number = int(text)
    if number < 2 or number % 2:
        raise argparse.ArgumentTypeError(f"{text} is not an even number above zero")
    return number
