"""Which devices training and evaluation run on."""

from __future__ import annotations

import torch


def check_device(name: str) -> str:
    """The name of a device, if it can be used.

    Raises:
        ValueError: It is none of cpu, cuda and cuda:N, or is not there.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"cannot use the device {name!r}: {reason}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"the device must be cpu, cuda or cuda:N, not {name!r}")
    return name
