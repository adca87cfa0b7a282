"""The peak memory of a whole run, cheap enough to ask at every step."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import torch


def peak_bytes(device: str) -> int:
    """Most bytes so far: of CUDA's allocator, or resident of the whole process on the CPU.

    0 where the system does not tell.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        resource: Any = import_module("resource")
    except ImportError:  # Windows
        return 0
    peak = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return peak if sys.platform == "darwin" else peak * 1024
