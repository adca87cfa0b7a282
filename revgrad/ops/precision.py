"""Matrix products in full precision, whatever the program allows elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from revgrad.dataless import without_autocast

_lock = threading.Lock()
_inside = 0  # how many threads, or levels of one, need full precision now
_before: list[str] = []
_FULL = ("none", "ieee")


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Run matrix products of float32 inside in float32, without autocast.

    `torch.set_float32_matmul_precision` and TF32 round the factors to 10 binary digits or fewer.
    A sub-network may be as coarse as it likes; an orthogonal matrix that is not orthogonal to
    rounding makes what is computed back drift.

    The settings are the process's. They are touched only where they are coarse, and put back when
    the last thread leaves. Code that is traced can't touch them, so `coarse_products` asks first.
    """
    if torch.compiler.is_dynamo_compiling():
        with without_autocast(device):
            yield
        return
    _enter()
    try:
        with without_autocast(device):
            yield
    finally:
        _leave()


def coarse_products() -> bool:
    """Whether the program lets factors of matrix products be rounded."""
    return any(s.fp32_precision not in _FULL for s in _settings())


def _settings() -> list[Any]:
    """The settings of matrix products on GPU and CPU."""
    backends: Any = torch.backends
    return [backends.cuda.matmul, backends.mkldnn.matmul]


def _enter() -> None:
    global _inside
    with _lock:
        if _inside == 0:
            _before[:] = [s.fp32_precision for s in _settings()]
            for setting, precision in zip(_settings(), _before, strict=True):
                if precision not in _FULL:
                    setting.fp32_precision = "ieee"
        _inside += 1


def _leave() -> None:
    global _inside
    with _lock:
        _inside -= 1
        if _inside:
            return
        inherited = torch.backends.fp32_precision  # type: ignore[attr-defined]
        for setting, precision in zip(_settings(), _before, strict=True):
            if precision not in _FULL:
                # "none" follows the setting for all backends, as it did before.
                setting.fp32_precision = "none" if precision == inherited else precision
