"""Tensors without numbers: meta and fake ones, with which PyTorch works out shapes and memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def has_data(tensor: Tensor) -> bool:
    """Whether there are numbers to be read."""
    return not (tensor.is_meta or isinstance(tensor, FakeTensor))


def autocast_is_on(device: torch.device) -> bool:
    """Whether autocast is on for the device; the meta device, which has none, is no error."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Context without autocast on the device, if it has any."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


class _Local(threading.local):
    stands_for: str | None = None


_local = _Local()


@contextmanager
def standing_for(device_type: str) -> Iterator[None]:
    """Let tensors without numbers stand for tensors on a device of this type."""
    before = _local.stands_for
    _local.stands_for = device_type
    try:
        yield
    finally:
        _local.stands_for = before


def device_type(tensor: Tensor) -> str:
    """The type of the device that a tensor is on or, without numbers, stands for."""
    if _local.stands_for is not None and not has_data(tensor):
        return _local.stands_for
    return tensor.device.type
