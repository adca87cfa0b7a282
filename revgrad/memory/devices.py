"""Which devices can be measured, and which one is meant."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def resolve(device: torch.device | str) -> torch.device:
    """`device` as it appears on tensors: the CPU without an index, CUDA with one."""
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be 'cpu', 'cuda' or 'cuda:N', not {device!r}") from error
    if chosen.type == "cpu":
        return torch.device("cpu")
    if chosen.type != "cuda":
        raise ValueError(f"device must be 'cpu', 'cuda' or 'cuda:N', not {str(device)!r}")
    if not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but this PyTorch finds no CUDA device")
    return torch.device(
        "cuda", torch.cuda.current_device() if chosen.index is None else chosen.index
    )


def device_of(parameters: Iterable[torch.Tensor]) -> torch.device:
    """The one device on which all `parameters` are; the CPU if there are none."""
    devices = {parameter.device for parameter in parameters}
    if len(devices) > 1:
        names = ", ".join(sorted(map(str, devices)))
        raise ValueError(
            f"the parameters are on several devices ({names}): say which, with device="
        )
    return resolve(devices.pop() if devices else "cpu")
