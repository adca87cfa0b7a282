"""Where a figure was measured: without it a figure is none."""

import datetime
import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from revgrad.info import PEERS
from revgrad.version import __version__

Facts = dict[str, Any]


def facts(device: str = "cpu") -> Facts:
    """The machine, the moment and the versions, ready for JSON."""
    found: Facts = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "bfloat16": bfloat16_units(),
        "load": load(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "revgrad": __version__,
        "peers": _peers(),
    }
    if torch.device(device).type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def load() -> list[float]:
    """How many processes wanted the processor in the last 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else []


def cpu() -> str:
    """The processor's name; Python knows only its architecture on Linux."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return name[1].strip() if name else platform.processor() or platform.machine()


def bfloat16_units() -> str:
    """The processor's instructions for bfloat16 products, which decide what these cost."""
    known = {"AMX": "_is_amx_tile_supported", "AVX512-BF16": "_is_avx512_bf16_supported"}
    names = [name for name, test in known.items() if getattr(torch.cpu, test, bool)()]
    return " and ".join(names) or "none known"


def _peers() -> dict[str, str]:
    installed = {}
    for name in PEERS:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed
