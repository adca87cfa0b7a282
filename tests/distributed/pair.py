"""Two processes on one machine that meet by a file: cases that both run, and a test of each.

A file of cases ends with `main(CASES)` and is run as a module, once in each process. A case gets
its rank and raises if something is wrong. A case that fails ends the run, as the processes may then
be at different places; one that hangs ends by the limit of its collectives, or of the whole run.
"""

import datetime
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

ROOT = Path(__file__).parents[2]
COLLECTIVE_SECONDS = 60
NOT_RUN = "not run: a case before it failed, or the time was up"


def run_pair(module, folder, seconds=200):
    """Run a module's cases in two processes.

    Returns:
        By case and rank "ok", or what went wrong.
    """
    command = [sys.executable, "-m", module]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    errors = [folder / f"stderr{rank}" for rank in (0, 1)]
    processes = []
    try:
        for rank in (0, 1):
            with errors[rank].open("w") as file:
                arguments = [*command, str(rank), str(folder)]
                processes.append(
                    subprocess.Popen(arguments, cwd=ROOT, env=environment, stderr=file)
                )
        end = time.monotonic() + seconds
        while any(p.poll() is None for p in processes) and time.monotonic() < end:
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    found = [_found(folder / f"results{rank}", errors[rank]) for rank in (0, 1)]
    return {case: [one.get(case, one[NOT_RUN]) for one in found] for case in found[0] | found[1]}


def _found(file, errors):
    lines = file.read_text().splitlines() if file.exists() else []
    return dict(map(json.loads, lines)) | {NOT_RUN: f"{NOT_RUN}\n{errors.read_text()[-4000:]}"}


def expect_ok(results, case):
    """The test of a case."""
    for rank, result in enumerate(results.get(case, results[NOT_RUN])):
        assert result == "ok", f"rank {rank}: {result}"


def main(cases):
    """The life of one of the processes."""
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    limit = datetime.timedelta(seconds=COLLECTIVE_SECONDS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=limit)
    with (folder / f"results{rank}").open("w") as results:
        for name, case in cases.items():
            try:
                case(rank)
                result = "ok"
            except BaseException:
                result = traceback.format_exc()
            results.write(json.dumps([name, result]) + "\n")
            results.flush()
            if not _both_ok(store, name, rank, result == "ok"):
                break
    # A process that ends breaks the connection of the one that still works.
    store.set(f"end {rank}", "")
    store.wait([f"end {1 - rank}"], limit)


def _both_ok(store, name, rank, fine):
    store.set(f"{name} {rank}", "ok" if fine else "failed")
    other = f"{name} {1 - rank}"
    store.wait([other], datetime.timedelta(seconds=2 * COLLECTIVE_SECONDS))
    return fine and store.get(other) == b"ok"
