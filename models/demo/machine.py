"""Where and when a run took place, as far as its figures depend on it."""

import datetime
import platform
from pathlib import Path

import torch

from revgrad.version import __version__


def machine(device: str) -> dict[str, str | int]:
    """The facts that belong beside every figure, ready for JSON."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        **({"gpu": torch.cuda.get_device_name(device)} if device.startswith("cuda") else {}),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "revgrad": __version__,
    }


def _cpu() -> str:
    """The processor's name; Python knows only its architecture on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
