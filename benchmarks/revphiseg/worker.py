"""The process in which a task is done, see `revgrad.benchmarks.sequence.process`."""

import json
import sys

from revgrad.benchmarks.revphiseg import tasks
from revgrad.benchmarks.sequence.worker import main

if __name__ == "__main__":
    main(json.loads(sys.argv[1]), {"memory": tasks.memory, "timing": tasks.timing})
