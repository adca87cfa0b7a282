"""The other end of `process.run_task`: do one task and answer in JSON lines."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from revgrad.benchmarks.sequence import tasks as sequence
from revgrad.benchmarks.sequence.settings import Settings

Tasks = Mapping[str, Callable[..., Any]]


def main(request: dict[str, Any], tasks: Tasks) -> None:
    """Do what is asked, one of `tasks`; an exception is an answer, too."""
    # What libraries print must not come between the lines of the answer.
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)

        def answer(**fields: Any) -> None:
            print(json.dumps(fields), file=answers)

        try:
            answer(result=perform(request, tasks, lambda: answer(round=True)))
        except Exception as error:
            answer(error=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def perform(request: dict[str, Any], tasks: Tasks, on_round: Callable[[], None]) -> Any:
    """Run the task with its arguments; what it yields are rounds."""
    settings = Settings(**request["settings"])
    torch.set_num_threads(settings.threads)
    result = tasks[request["task"]](settings, **request["arguments"])
    if not isinstance(result, Iterator):
        return result
    rounds = []
    for one in result:
        rounds.append(one)
        on_round()
    return rounds


if __name__ == "__main__":
    main(
        json.loads(sys.argv[1]),
        {"memory": sequence.memory, "growth": sequence.growth, "timing": sequence.timing},
    )
