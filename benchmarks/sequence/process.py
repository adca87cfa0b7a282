"""Run a measurement in a process of its own; a crash there is a result like any other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import IO, Any

from revgrad.benchmarks.sequence.settings import Settings

WORKER = "revgrad.benchmarks.sequence.worker"


class TaskError(Exception):
    """A measurement did not come to its end; the message says why."""


def run_task(
    task: str,
    settings: Settings,
    on_round: Callable[[], None] = lambda: None,
    environment: Mapping[str, str] | None = None,
    worker: str = WORKER,
    **arguments: Any,
) -> Any:
    """Run a task in a new process.

    The task goes in as JSON, and JSON lines come back: one for each round, one with the result.

    Args:
        task: Its name, for the sequence's worker "memory", "growth" or "timing".
        settings: What is measured.
        on_round: Called after every round of a timing.
        environment: Variables for the new process.
        worker: The module that knows the task, see `revgrad.benchmarks.sequence.worker.main`.
        **arguments: Further arguments of the task.

    Returns:
        What the task returned; of a timing, the list of its rounds.

    Raises:
        TaskError: It raised an exception or its process died.
    """
    request = json.dumps({"task": task, "settings": asdict(settings), "arguments": arguments})
    answer: dict[str, Any] = {}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", worker, request],
            env=os.environ | {"OMP_NUM_THREADS": str(settings.threads)} | dict(environment or {}),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        with process:
            assert process.stdout is not None
            for line in process.stdout:
                answer = json.loads(line)
                if "round" in answer:
                    on_round()
        if "result" in answer:
            return answer["result"]
        raise TaskError(answer.get("error") or _death(process.returncode, errors))


def _death(status: int, errors: IO[str]) -> str:
    """Why a process ended without an answer."""
    errors.seek(0)
    lines = [line.strip() for line in errors if line.strip()]
    last = f": {lines[-1]}" if lines else ""
    if status < 0:
        return f"its process was killed by {signal.Signals(-status).name}{last}"
    return f"its process ended with status {status}{last}"
