"""Which devices training and evaluation run on."""

from __future__ import annotations

import torch


def check_device(name: str) -> str:
    """The name of a device, if it can be used.

    Raises:
        ValueError: It is none of cpu, cuda and cuda:N, or is not there.
    """
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"the device must be cpu, cuda or cuda:N, not {name!r}")
    try:
        torch.empty(0, device=torch.device(name))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"cannot use the device {name!r}: {reason}") from error
    return name
