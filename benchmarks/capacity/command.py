"""The options of `revgrad bench capacity`, and what it does."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from revgrad import machine
from revgrad.benchmarks.capacity import report
from revgrad.benchmarks.capacity.run import run
from revgrad.benchmarks.capacity.settings import METHODS, Question, Settings
from revgrad.benchmarks.capacity.sizes import parse_bytes
from revgrad.benchmarks.progress import Progress
from revgrad.benchmarks.sequence.command import even


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `revgrad bench capacity`."""
    add = parser.add_argument
    add("--memory", type=parse_bytes, required=True, help="the budget, such as 12GB or 24GiB")
    add("--methods", nargs="+", choices=METHODS, metavar="NAME", help=", ".join(METHODS))
    add("--depth", type=even, default=20, help="number of sub-networks, default 20")
    add("--channels", type=even, default=64, help="of the couplings, default 64")
    add("--size", type=int, default=256, help="of the images' axes, default 256")
    add("--patch-step", type=int, default=16, help="3D patches are multiples of it, default 16")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16: autocast")
    add("--device", choices=("cpu", "cuda"), help="cuda: measure there; cpu: estimate")
    add("--repeats", type=int, default=5, help="steps that are timed on a GPU, default 5")
    add("--output", type=Path, default=Path("revgrad-results"), help="default revgrad-results")


def main(args: argparse.Namespace) -> int:
    """Search, print the tables and write the files."""
    settings = settings_of(args)
    facts = machine.facts(settings.device)
    progress = Progress(len(settings.questions) * len(settings.methods))
    rows = run(settings, progress.step)
    progress.close()
    page = report.write(settings, rows, facts, args.output)
    print(f"\n{report.tables(settings, rows)}\n\nThe whole report: {page}")
    return 0


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings, on a GPU if there is one."""
    there = torch.cuda.is_available()
    device = args.device or ("cuda" if there else "cpu")
    if device == "cuda" and not there:
        raise SystemExit("revgrad: this PyTorch finds no CUDA device; --device cpu estimates")
    for name in ("size", "patch_step", "repeats"):
        if getattr(args, name) < 1:
            raise SystemExit(f"revgrad: --{name.replace('_', '-')} must be at least 1")
    if device == "cuda":
        total = torch.cuda.mem_get_info()[1]
        if args.memory > total:
            raise SystemExit(f"revgrad: this GPU has {total} bytes, less than the budget")
    return Settings(
        budget=args.memory,
        channels=args.channels,
        depth=args.depth,
        dtype=args.dtype,
        device=device,
        methods=tuple(dict.fromkeys(args.methods or METHODS)),
        questions=(
            Question(f"batch of 2D images, {args.size}x{args.size}", 2, 1, args.size),
            Question("side of a 3D patch", 3, args.patch_step),
        ),
        repeats=args.repeats,
    )
