"""The options of `revgrad bench kernels`, and what it does."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from revgrad import machine
from revgrad.benchmarks.kernels import report
from revgrad.benchmarks.kernels.cases import Plan, cases
from revgrad.benchmarks.kernels.run import run
from revgrad.benchmarks.progress import Progress
from revgrad.ops import kernels

# An image that stays in the caches of a large processor, and a volume that does not.
_SIZES = ((1, 32, 256, 256), (1, 32, 64, 96, 96))
_QUICK_SIZES = ((1, 8, 16, 16), (1, 4, 8, 8, 8))
_MATRICES = (4, 8, 16, 32, 64, 128, 256)
_QUICK_MATRICES = (4, 70)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `revgrad bench kernels`."""
    add = parser.add_argument
    add("--quick", action="store_true", help="tiny tensors: a trial of the benchmark itself")
    add("--sizes", nargs="+", type=size, metavar="NxCx...", help="of images, default 2D and 3D")
    add("--matrices", nargs="+", type=int, metavar="N", help="default 4 8 16 32 64 128 256")
    add("--threads", type=int, default=torch.get_num_threads(), help="default: as PyTorch has it")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="default cpu")
    add("--repeats", type=int, help="rounds, default 40")
    add("--output", type=Path, default=Path("revgrad-results"), help="default revgrad-results")


def main(args: argparse.Namespace) -> int:
    """Measure, print the tables and write the files."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("revgrad: this PyTorch finds no CUDA device")
    plan = plan_of(args)
    facts = machine.facts(args.device)  # before the run: so the load is that of others
    facts["threads"] = plan.threads
    facts["kernels"] = kernels.describe()
    facts["variant"] = os.environ.get("REVGRAD_CPU_VARIANT", "the processor's best")
    progress = Progress(sum(1 for _ in cases(plan)))
    rows = run(plan, progress.step)
    progress.close()
    facts["load_after"] = machine.load()
    page = report.write(plan, rows, facts, args.output)
    print(f"\n{report.tables(rows)}\n\nThe whole report: {page}")
    return 0


def plan_of(args: argparse.Namespace) -> Plan:
    """Fill in what was not given."""
    sizes = args.sizes or (_QUICK_SIZES if args.quick else _SIZES)
    matrices = args.matrices or (_QUICK_MATRICES if args.quick else _MATRICES)
    repeats = args.repeats or (2 if args.quick else 40)
    return Plan(tuple(sizes), tuple(matrices), repeats, args.threads, args.device)


def size(text: str) -> tuple[int, ...]:
    """Parse an image's size, such as 1x32x256x256."""
    parts = text.split("x")
    if not 3 <= len(parts) <= 5 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text} is not a size such as 1x32x256x256")
    return tuple(map(int, parts))
