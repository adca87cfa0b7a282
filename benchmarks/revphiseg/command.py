"""The options of `revgrad bench revphiseg`, and what it does."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from revgrad.benchmarks.command import carry_out
from revgrad.benchmarks.revphiseg import report
from revgrad.benchmarks.revphiseg.networks import DEFAULT, VARIANTS
from revgrad.benchmarks.revphiseg.run import number_of_steps, run
from revgrad.benchmarks.revphiseg.settings import LIDC, PROSTATE, QUICK, Plan, Point


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `revgrad bench revphiseg`."""
    add = parser.add_argument
    add("--quick", action="store_true", help="tiny networks: a trial of the benchmark itself")
    add(
        "--batches",
        nargs="+",
        type=_positive,
        help="batches of 128 x 128, two classes, in place of the paper's points (12 24 36 48 56, "
        "and 12 of 192, 256 and 384 with three classes)",
    )
    add("--sizes", nargs="+", type=_size, help="sizes of 12 images of three classes, likewise")
    add("--variants", nargs="+", choices=VARIANTS, metavar="NAME", help=", ".join(VARIANTS))
    add("--channels-last", action="store_true", help="memory format, default contiguous")
    add("--threads", type=_positive, default=torch.get_num_threads(), help="default: PyTorch's")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="default cpu")
    add("--repeats", type=_natural, help="rounds of the time measurement, default 3; 0: none")
    add("--output", type=Path, default=Path("revgrad-results"), help="default revgrad-results")


def main(args: argparse.Namespace) -> int:
    """Measure, print the tables and write the files."""
    plan = plan_of(args)
    return carry_out(plan, plan.device, number_of_steps(plan), run, report, args.output)


def plan_of(args: argparse.Namespace) -> Plan:
    """Fill in what was not given."""
    points = QUICK if args.quick else (*LIDC, *PROSTATE)
    if args.batches or args.sizes:
        given = [Point(batch) for batch in args.batches or ()]
        points = (*given, *(Point(12, size, 3) for size in args.sizes or ()))
    return Plan(
        tuple(dict.fromkeys(points)),
        variants=tuple(dict.fromkeys(args.variants or DEFAULT)),
        channels_last=args.channels_last,
        device=args.device,
        threads=args.threads,
        repeats=(2 if args.quick else 3) if args.repeats is None else args.repeats,
        quick=args.quick,
    )


def _natural(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is below zero")
    return number


def _positive(text: str) -> int:
    number = _natural(text)
    if not number:
        raise argparse.ArgumentTypeError("0 is not a whole number above zero")
    return number


def _size(text: str) -> int:
    number = _positive(text)
    if number % 64:
        raise argparse.ArgumentTypeError(f"{number} is no multiple of 64, which seven levels need")
    return number
