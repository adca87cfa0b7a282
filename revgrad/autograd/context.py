"""What the running thread is doing: which layer a sequence calls, who evaluates sub-networks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Evaluator(Protocol):
    """Evaluates the sub-networks of the layer that is running."""

    def run(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Evaluate `module`."""

    def run_onto(self, module: nn.Module, stream: Tensor, x: Tensor) -> Tensor | None:
        """The stream plus the value of `module` at `x` in one pass; None if that can't be."""


class _Local(threading.local):
    evaluator: Evaluator | None = None
    pending: tuple[object, Any] | None = None


_local = _Local()


@contextmanager
def evaluating(evaluator: Evaluator | None) -> Iterator[None]:
    """Let `evaluator` evaluate the sub-networks of layers; None stands for a plain call."""
    before = _local.evaluator, _local.pending
    _local.evaluator, _local.pending = evaluator, None
    try:
        yield
    finally:
        _local.evaluator, _local.pending = before


def current_evaluator() -> Evaluator | None:
    """Who evaluates sub-networks now, or None; nobody does in code that is traced."""
    return None if torch.compiler.is_dynamo_compiling() else _local.evaluator


@contextmanager
def calling(layer: object, place: Any) -> Iterator[None]:
    """Tell `layer`, about to be called by a sequence, its place there.

    The place can't be an argument: the call goes through `nn.Module.__call__`, so that the
    layer's own hooks run around its node of the graph (FSDP gathers parameters in such hooks).
    """
    before = _local.pending
    _local.pending = (layer, place)
    try:
        yield
    finally:
        _local.pending = before


def take_place(layer: object) -> Any:
    """The place that a sequence has for `layer`, which it is calling; None outside of one."""
    if torch.compiler.is_dynamo_compiling():
        return None
    if _local.pending is None or _local.pending[0] is not layer:
        return None
    _, place = _local.pending
    _local.pending = None
    return place
