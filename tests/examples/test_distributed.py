"""The examples for several processes, started by torchrun as their users do."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def torchrun(*arguments):
    """What the first of two processes on the CPU prints; a free port is torchrun's affair."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*launcher, "--nproc-per-node", "2", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=150,
    )


def losses(done):
    assert done.returncode == 0, done.stderr[-4000:]
    return [
        float(number) for number in re.findall(r"loss (\S+) in .* step, (\S+) in", done.stdout)[0]
    ]


@pytest.mark.timeout(170)
def test_ddp():
    first, last = losses(torchrun("examples/ddp.py", "--steps", "8", "--crop", "32"))
    assert last < first


@pytest.mark.timeout(170)
def test_fsdp2():
    done = torchrun("examples/fsdp2.py", "--steps", "8", "--channels", "16")
    first, last = losses(done)
    assert last < first
    whole, part, left = re.findall(r"of (\d+) weights, (\d+) are .* left: (\d+)", done.stdout)[0]
    assert 0.5 * int(whole) <= int(part) < 0.52 * int(whole)
    assert left == "0"
    assert "returned a view" not in done.stderr
