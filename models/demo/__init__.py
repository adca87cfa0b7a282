"""``revgrad demo``: a small network with and without stored activations, and one that draws."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from revgrad.models.data import LIDC
from revgrad.models.demo import ambiguous
from revgrad.models.demo.report import write
from revgrad.models.demo.run import run
from revgrad.models.demo.settings import QUICK, Settings
from revgrad.models.training.device import check_device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `revgrad demo`."""
    default = Settings()
    parser.add_argument(
        "--steps",
        type=_positive,
        help=f"training steps of each network ({default.steps}, and "
        f"{ambiguous.AmbiguousSettings().steps} of the one that draws segmentations)",
    )
    parser.add_argument(
        "--device", type=_device, default="cpu", help="cpu, cuda or cuda:N (%(default)s)"
    )
    parser.add_argument("--threads", type=_positive, help="CPU threads (as many as torch takes)")
    parser.add_argument(
        "--seed", type=int, default=default.seed, help="of weights and batches (%(default)s)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("revgrad-demo"),
        help="folder for the report (%(default)s)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few steps of a tiny network, only to see it run"
    )


def main(args: argparse.Namespace) -> int:
    """Train, compare and write the report."""
    try:
        args.output.mkdir(parents=True, exist_ok=True)  # before the minutes of training
    except OSError as error:
        print(f"revgrad demo: cannot make the folder {args.output}: {error}", file=sys.stderr)
        return 1
    chosen = {"seed": args.seed, "device": args.device}
    if args.steps is not None:
        chosen["steps"] = args.steps
    with _threads(args.threads):
        write(run(replace(QUICK if args.quick else Settings(), **chosen)), args.output)
        draws = ambiguous.QUICK if args.quick else ambiguous.AmbiguousSettings()
        _draw(replace(draws, **chosen), args.output)
    return 0


def _draw(settings: ambiguous.AmbiguousSettings, output: Path) -> None:
    """Train the network that draws on masks of four radiologists, and show its samples."""
    training, held_out = (LIDC(split, size=settings.size) for split in ("train", "val"))
    network = ambiguous.small_network(training, settings)
    print(f"\n{training.title}: training {type(network).__name__} ...", flush=True)
    ambiguous.write(ambiguous.run(network, training, held_out, settings), output)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Compute with so many threads, and with as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above zero")
    return int(text)


def _device(text: str) -> str:
    try:
        return check_device(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
