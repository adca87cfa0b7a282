"""The process in which a task is done, see `revgrad.benchmarks.sequence.process`."""

import json
import sys

from revgrad.benchmarks.planner import tasks
from revgrad.benchmarks.sequence.worker import main

if __name__ == "__main__":
    main(
        json.loads(sys.argv[1]),
        {"plan": tasks.plan, "memory": tasks.memory, "timing": tasks.timing},
    )
