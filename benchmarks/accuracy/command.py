"""The options of `revgrad bench accuracy`, and what it does."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from revgrad import machine
from revgrad.benchmarks.accuracy import report
from revgrad.benchmarks.accuracy.networks import NETWORKS, PRECISIONS
from revgrad.benchmarks.accuracy.run import VARIANTS, number_of_steps, run
from revgrad.benchmarks.accuracy.settings import Plan
from revgrad.benchmarks.peers import ADAPTORS
from revgrad.benchmarks.progress import Progress
from revgrad.benchmarks.sequence.command import even

_FULL: dict[str, Any] = {"depths": (10, 20, 50, 100, 200, 500), "seeds": 3}
_QUICK: dict[str, Any] = {"depths": (4, 20), "seeds": 1, "size": 6, "batch": 1}
_NAMES = f"default: {' '.join(VARIANTS)}; also {' '.join(n for n in ADAPTORS if n not in VARIANTS)}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `revgrad bench accuracy`."""
    add = parser.add_argument
    add("--quick", action="store_true", help="few and small: a trial of the benchmark itself")
    add("--variants", nargs="+", choices=ADAPTORS, metavar="NAME", help=_NAMES)
    add("--networks", nargs="+", choices=NETWORKS, help="default: all")
    add("--precisions", nargs="+", choices=PRECISIONS, help="default: all")
    add(
        "--depths",
        nargs="+",
        type=even,
        help="numbers of sub-networks, default 10 20 50 100 200 500",
    )
    add("--seeds", type=int, help="networks of each kind; figures are medians, default 3")
    add("--fraction-bits", type=int, default=20, help="of exact streams, default 20")
    add("--threads", type=int, default=1, help="default 1; the tensors are small")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="default cpu")
    add("--output", type=Path, default=Path("revgrad-results"), help="default revgrad-results")


def main(args: argparse.Namespace) -> int:
    """Measure, print the tables and write the files."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("revgrad: this PyTorch finds no CUDA device")
    torch.set_num_threads(args.threads)
    plan = plan_of(args)
    facts = machine.facts(args.device)
    progress = Progress(number_of_steps(plan))
    rows = run(plan, progress.step)
    progress.close()
    page = report.write(plan, rows, facts, args.output)
    print(f"\n{report.tables(plan, rows)}\n\nThe whole report: {page}")
    return 0


def plan_of(args: argparse.Namespace) -> Plan:
    """Fill in what was not given."""
    given = {
        "variants": args.variants,
        "networks": args.networks,
        "precisions": args.precisions,
        "depths": args.depths,
    }
    chosen = {name: tuple(dict.fromkeys(values)) for name, values in given.items() if values}
    defaults = {
        "variants": VARIANTS,
        "networks": tuple(NETWORKS),
        "precisions": tuple(PRECISIONS),
        **(_QUICK if args.quick else _FULL),
    }
    if args.seeds is not None:
        chosen["seeds"] = args.seeds
    return Plan(**{**defaults, **chosen}, fraction_bits=args.fraction_bits, device=args.device)
