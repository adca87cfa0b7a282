"""Which ways of saving memory compute the gradients of plain autograd, case by case.

`revgrad bench reliability` runs the cases on revgrad, on torch's checkpoint and on the other
reversible libraries that are installed, and prints a table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from revgrad.benchmarks.peers import ADAPTORS, available
from revgrad.benchmarks.reliability.cases import CASES
from revgrad.benchmarks.reliability.engines import BUILDERS
from revgrad.benchmarks.reliability.report import Outcomes, as_dict, reasons, table
from revgrad.machine import facts

WORKER = "revgrad.benchmarks.reliability.worker"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--engines",
        nargs="+",
        choices=list(BUILDERS),
        default=list(BUILDERS),
        help="ways of running the networks (default: all that are installed)",
    )
    parser.add_argument("--output", type=Path, help="folder for the table and the JSON")


def main(args: argparse.Namespace) -> int:
    """Run the cases, print the table and what was said where an engine was not right."""
    names = [case.name for case in CASES]
    outcomes: Outcomes = {}
    for engine in args.engines:
        missing = ADAPTORS[engine].packages and available(engine).reason
        if missing:
            print(f"{engine}: {missing}", flush=True)
            continue
        outcomes[engine] = run_engine(engine)
    print("\n" + table(names, outcomes))
    for engine in outcomes:
        lines = reasons(names, outcomes, engine)
        print(f"{engine}: {len(names) - len(lines)} of {len(names)} right", *lines, sep="\n  ")
    if args.output is not None:
        _write(args.output, names, outcomes)
    return 0


def run_engine(engine: str) -> list[dict[str, str]]:
    """The outcome of every case; a case that ends its process is a crash."""
    outcomes: list[dict[str, str]] = []
    while len(outcomes) < len(CASES):
        command = [sys.executable, "-m", WORKER, engine, str(len(outcomes))]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                found = _parse(line)
                if "outcome" in found:
                    outcomes.append(found)
                    _progress(engine, len(outcomes))
        if len(outcomes) < len(CASES):
            why = f"the process ended with status {process.returncode}"
            outcomes.append({"outcome": "crash", "why": why})
    print(file=sys.stderr)
    return outcomes


def _parse(line: str) -> dict[str, str]:
    """A line of the worker; libraries print lines of their own between them."""
    try:
        found = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _progress(engine: str, done: int) -> None:
    print(f"\r{engine}: {done}/{len(CASES)} cases", end="", file=sys.stderr, flush=True)


def _write(folder: Path, names: list[str], outcomes: Outcomes) -> None:
    machine = facts()
    folder.mkdir(parents=True, exist_ok=True)
    versions = ", ".join(f"{name} {v}" for name, v in machine["peers"].items())
    heading = f"torch {machine['torch']}, {machine['cpu']}, {machine['date']}; {versions}\n\n"
    (folder / "reliability.md").write_text(heading + table(names, outcomes), encoding="utf-8")
    text = json.dumps(as_dict(names, outcomes, machine), indent=1)
    (folder / "reliability.json").write_text(text, encoding="utf-8")
