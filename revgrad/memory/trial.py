"""Whether a model runs to be looked at, and not to be trained."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_running = 0  # in the whole process: the engine's threads run hooks too


def is_trial_run() -> bool:
    """Whether `plan` or `estimate` is running a model, in any thread of this process.

    They run its hooks as well, which are a part of the step: a hook may compute the weights or
    gather them. One that counts, logs or stores can ask whether it shall. Under `estimate` its
    tensors have no data.
    """
    return _running > 0


@contextmanager
def trial_run() -> Iterator[None]:
    """Mark what runs inside, see `is_trial_run`."""
    _count(1)
    try:
        yield
    finally:
        _count(-1)


def _count(change: int) -> None:
    global _running
    with _lock:
        _running += change
