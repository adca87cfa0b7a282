"""The options of `revgrad bench sequence`, and what it does."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from revgrad.benchmarks.command import carry_out
from revgrad.benchmarks.peers import ADAPTORS
from revgrad.benchmarks.sequence import report
from revgrad.benchmarks.sequence.run import BASE, number_of_steps, run
from revgrad.benchmarks.sequence.settings import Plan, Settings

_FULL = {"depths": (10, 20, 40), "channels": 64, "repeats": 7, "variants": tuple(ADAPTORS)}
_QUICK = {
    "depths": (2, 4),
    "channels": 8,
    "repeats": 2,
    "variants": tuple(name for name in ADAPTORS if not ADAPTORS[name].compiles),
}
_SIZES = {2: 128, 3: 32}
_QUICK_SIZE = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `revgrad bench sequence`."""
    add = parser.add_argument
    add("--quick", action="store_true", help="a tiny network: a trial of the benchmark itself")
    add("--variants", nargs="+", choices=ADAPTORS, metavar="NAME", help=", ".join(ADAPTORS))
    add("--depths", nargs="+", type=even, help="numbers of sub-networks, default 10 20 40")
    add("--channels", type=even, help="of the input, default 64; a stream has half of them")
    add("--size", type=int, help="of every spatial axis, default 128, in 3D 32")
    add("--batch", type=int, default=1, help="default 1")
    add("--spatial-dims", type=int, choices=(2, 3), default=2, help="default 2")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16: autocast")
    add("--channels-last", action="store_true", help="memory format, default contiguous")
    add("--threads", type=int, default=torch.get_num_threads(), help="default: as PyTorch has it")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="default cpu")
    add("--repeats", type=int, help="rounds of the time measurement, default 7")
    add("--output", type=Path, default=Path("revgrad-results"), help="default revgrad-results")


def main(args: argparse.Namespace) -> int:
    """Measure, print the tables and write the files."""
    plan = plan_of(args)
    return carry_out(plan, args.device, number_of_steps(plan), run, report, args.output)


def plan_of(args: argparse.Namespace) -> Plan:
    """Fill in what was not given."""
    defaults = _QUICK if args.quick else _FULL
    size = _QUICK_SIZE if args.quick else _SIZES[args.spatial_dims]

    def chosen(name: str) -> Any:
        given = getattr(args, name)
        return defaults[name] if given is None else given

    settings = Settings(
        channels=chosen("channels"),
        size=args.size or size,
        batch=args.batch,
        spatial_dims=args.spatial_dims,
        dtype=args.dtype,
        channels_last=args.channels_last,
        device=args.device,
        threads=args.threads,
    )
    variants = tuple(dict.fromkeys((BASE, *chosen("variants"))))
    return Plan(settings, variants, tuple(chosen("depths")), chosen("repeats"))


def even(text: str) -> int:
    """Parse a number of sub-networks or channels that come in pairs."""
    number = int(text)
    if number < 2 or number % 2:
        raise argparse.ArgumentTypeError(f"{number} is not an even number of at least 2")
    return number
