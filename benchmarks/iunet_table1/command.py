"""The options of `revgrad bench iunet-table1`, and what it does."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from revgrad.benchmarks.command import carry_out
from revgrad.benchmarks.iunet_table1 import report
from revgrad.benchmarks.iunet_table1.networks import VARIANTS
from revgrad.benchmarks.iunet_table1.run import number_of_steps, run
from revgrad.benchmarks.iunet_table1.settings import FULL, QUICK, SCALES, SMALL, Plan
from revgrad.benchmarks.sequence.settings import Settings

_DEPTHS, _QUICK_DEPTHS = (5, 10, 20, 30), (1, 2)
_REPEATS, _QUICK_REPEATS = 7, 2
_QUICK_SIZE = 4, 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `revgrad bench iunet-table1`."""
    add = parser.add_argument
    add("--quick", action="store_true", help="a tiny network: a trial of the benchmark itself")
    add(
        "--scale",
        choices=SCALES,
        default=SMALL,
        help="1/16: 16 channels of 256 x 256; full: 64 of 512 x 512, as published; default 1/16",
    )
    add("--variants", nargs="+", choices=VARIANTS, metavar="NAME", help=", ".join(VARIANTS))
    add(
        "--depths",
        nargs="+",
        type=_positive,
        help="coupling blocks of each level and side, default 5 10 20 30",
    )
    add("--batch", type=_positive, default=1, help="default 1")
    add("--channels-last", action="store_true", help="memory format, default contiguous")
    add("--threads", type=int, default=torch.get_num_threads(), help="default: as PyTorch has it")
    add(
        "--device",
        choices=("cpu", "cuda"),
        help="default cpu, at full scale cuda where there is one",
    )
    add("--repeats", type=_positive, help="rounds of the time measurement, default 7")
    add("--output", type=Path, default=Path("revgrad-results"), help="default revgrad-results")


def main(args: argparse.Namespace) -> int:
    """Measure, print the tables and write the files."""
    plan = plan_of(args)
    return carry_out(plan, plan.settings.device, number_of_steps(plan), run, report, args.output)


def plan_of(args: argparse.Namespace) -> Plan:
    """Fill in what was not given."""
    quick = args.quick
    scale = QUICK if quick else args.scale
    channels, size = _QUICK_SIZE if quick else SCALES[scale]
    settings = Settings(
        channels=channels,
        size=size,
        batch=args.batch,
        channels_last=args.channels_last,
        device=args.device or _device(scale),
        threads=args.threads,
    )
    return Plan(
        settings,
        scale,
        variants=tuple(dict.fromkeys(args.variants or VARIANTS)),
        depths=tuple(dict.fromkeys(args.depths or (_QUICK_DEPTHS if quick else _DEPTHS))),
        repeats=args.repeats or (_QUICK_REPEATS if quick else _REPEATS),
    )


def _device(scale: str) -> str:
    return "cuda" if scale == FULL and torch.cuda.is_available() else "cpu"


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not a whole number above zero")
    return number
