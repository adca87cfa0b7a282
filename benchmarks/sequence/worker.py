"""The other end of `process.run_task`: do one task and answer in JSON lines."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from revgrad.benchmarks.sequence import tasks
from revgrad.benchmarks.sequence.settings import Settings


def main(request: dict[str, Any]) -> None:
    """Do what is asked; an exception is an answer, too."""
    # What libraries print must not come between the lines of the answer.
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)

        def answer(**fields: Any) -> None:
            print(json.dumps(fields), file=answers)

        try:
            answer(result=perform(request, lambda: answer(round=True)))
        except Exception as error:
            answer(error=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def perform(request: dict[str, Any], on_round: Callable[[], None]) -> Any:
    """Run the task with its arguments."""
    settings = Settings(**request["settings"])
    torch.set_num_threads(settings.threads)
    if request["task"] != "timing":
        task = {"memory": tasks.memory, "growth": tasks.growth}[request["task"]]
        return task(settings, **request["arguments"])
    rounds = []
    for seconds in tasks.timing(settings, **request["arguments"]):
        rounds.append(seconds)
        on_round()
    return rounds


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
