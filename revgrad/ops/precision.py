"""Matrix products in full precision, whatever the program allows elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from revgrad.dataless import without_autocast


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Run matrix products of float32 inside in float32, without autocast.

    `torch.set_float32_matmul_precision` and TF32 round the factors to 10 binary digits or fewer.
    A sub-network may be as coarse as it likes; an orthogonal matrix that is not orthogonal to
    rounding makes what is computed back drift.
    """
    settings: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
    before = [s.fp32_precision for s in settings]
    for s in settings:
        s.fp32_precision = "ieee"
    try:
        with without_autocast(device):
            yield
    finally:
        for s, precision in zip(settings, before, strict=True):
            s.fp32_precision = precision
