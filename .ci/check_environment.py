"""Fail when an installation changed torch, or dragged GPU packages beside a CPU build.

Usage: python .ci/check_environment.py TORCH_VERSION
"""

import sys
from importlib import metadata

import torch


def complaints(wanted: str) -> list[str]:
    """List what is wrong with the environment that runs this."""
    found = []
    if torch.__version__.partition("+")[0] != wanted:
        found.append(f"torch is {torch.__version__}, but {wanted} is asked for")
    if torch.version.cuda is None:
        names = {(dist.name or "").lower() for dist in metadata.distributions()}
        strays = sorted(n for n in names if n == "torchvision" or n.startswith("nvidia-"))
        found += [f"{name} was installed beside a CPU build of torch" for name in strays]
    return found


if __name__ == "__main__":
    problems = complaints(sys.argv[1])
    sys.exit("\n".join(problems) if problems else 0)
