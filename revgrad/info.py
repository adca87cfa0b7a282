"""Say what this installation is made of: `revgrad info`."""

import argparse
import json
import platform
import re
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import torch

from revgrad.ops import kernels
from revgrad.optional import install_command
from revgrad.version import __version__

# The libraries that the benchmarks compare with, in the versions that were studied. They are
# installed without their dependencies, which would replace torch or pull in torchvision.
PEERS = {"memcnn": "1.5.2", "revtorch": "0.2.4", "iunets": "0.1", "revlib": "1.7.2"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `revgrad info`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(args: argparse.Namespace) -> int:
    """Print what `collect` found."""
    facts = collect()
    print(json.dumps(facts, indent=2) if args.json else "\n".join(_lines(facts)))
    return 0


def collect() -> dict[str, Any]:
    """Gather versions, devices, kernels and optional packages, ready for JSON."""
    return {
        "revgrad": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": {"version": str(torch.__version__), "build": _torch_build()},
        "devices": _devices(),
        "cpu": {
            "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "onednn": torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled,
        },
        "kernels": kernels.describe(),
        "extras": {extra: _extra(extra, names) for extra, names in _extras().items()},
        "peers": {name: _peer(name) for name in PEERS},
    }


def peer_requirements() -> list[str]:
    """Return the pinned requirement of each peer, as pip takes it."""
    return [f"{name}=={version}" for name, version in PEERS.items()]


def _torch_build() -> str:
    if torch.version.cuda is not None:
        return f"CUDA {torch.version.cuda}"
    if torch.version.hip is not None:
        return f"ROCm {torch.version.hip}"
    return "CPU"


def _devices() -> list[str]:
    devices = ["cpu"]
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        devices.append(f"cuda:{index} ({gpu.name}, {gpu.total_memory / 2**30:.0f} GiB)")
    if torch.backends.mps.is_available():
        devices.append("mps")
    return devices


def _extras() -> dict[str, list[str]]:
    """Read which distributions each extra asks for from the package's own metadata."""
    try:
        requirements = metadata.requires("revgrad") or []
    except metadata.PackageNotFoundError:  # used from a checkout that was never installed
        return {}
    extras: dict[str, list[str]] = {}
    for requirement in requirements:
        match = re.match(r"([\w.-]+).*\bextra == ['\"]([\w.-]+)['\"]", requirement)
        if match is not None:
            extras.setdefault(match[2], []).append(match[1])
    return extras


def _extra(extra: str, names: list[str]) -> dict[str, Any]:
    missing = [name for name in names if _installed_version(name) is None]
    return {"missing": missing, "install": install_command(extra) if missing else None}


def _peer(name: str) -> dict[str, Any]:
    version = _installed_version(name)
    install = f"pip install --no-deps {name}=={PEERS[name]}"
    return {"version": version, "install": install if version is None else None}


def _installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    """Lay the facts out for people, one subject a line."""
    build, cpu = facts["torch"], facts["cpu"]
    rows = [
        ("revgrad", facts["revgrad"]),
        ("python", f"{facts['python']} on {facts['platform']}"),
        ("torch", f"{build['version']}, {build['build']} build"),
        *(("device", device) for device in facts["devices"]),
        ("cpu", f"{cpu['capability']}, {cpu['threads']} threads, {_onednn(cpu['onednn'])}"),
        ("kernels", facts["kernels"]),
        *((f"extra {name}", _extra_state(found)) for name, found in facts["extras"].items()),
        *((f"peer {name}", _peer_state(found)) for name, found in facts["peers"].items()),
    ]
    width = max(len(label) for label, _ in rows)
    return (f"{label:<{width}}  {text}" for label, text in rows)


def _onednn(available: bool) -> str:
    return "oneDNN on" if available else "oneDNN off"


def _extra_state(found: dict[str, Any]) -> str:
    if not found["missing"]:
        return "installed"
    return f"missing {', '.join(found['missing'])}: {found['install']}"


def _peer_state(found: dict[str, Any]) -> str:
    return found["version"] or f"missing: {found['install']}"
