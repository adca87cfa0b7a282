"""What the commands of the benchmarks do alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from revgrad import machine
from revgrad.benchmarks.progress import Progress


def carry_out(
    plan: Any,
    device: str,
    steps: int,
    run: Callable[[Any, Callable[[str], None]], Sequence[Any]],
    report: ModuleType,
    folder: Path,
) -> int:
    """Measure, print the tables, write the files and return the exit status.

    Args:
        plan: What is to be measured.
        device: Where.
        steps: How often `run` shows that it has come further.
        run: Gives rows; called with the plan and a function to show a text.
        report: A module with `tables(plan, rows)` and `write(plan, rows, facts, folder)`.
        folder: Where the files go.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("revgrad: this PyTorch finds no CUDA device")
    facts = machine.facts(device)  # before the run: so the load is that of others
    progress = Progress(steps)
    rows = run(plan, progress.step)
    progress.close()
    facts["load_after"] = machine.load()
    page = report.write(plan, rows, facts, folder)
    print(f"\n{report.tables(plan, rows)}\n\nThe whole report: {page}")
    return 0
