"""Memory that a recording of PyTorch's CPU allocator does not see.

The profiler follows the thread that runs the step, and the backward pass's threads. What a kernel's
worker threads allocate is missing (for a 3x3 convolution in float64: nine inputs' worth), and so is
what a library takes from malloc itself. glibc counts all bytes in use (`mallinfo2`): what it counts
beyond the recorded blocks, and no longer counts when the step ends, is such memory. A thread reads
the counter while the step runs: PyTorch gives up the interpreter lock inside its operators.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from functools import cache
from itertools import accumulate
from types import TracebackType

from .events import Timeline

_INTERVAL = 2e-4  # seconds between two readings
_CLOCK_SLACK = 50_000  # nanoseconds by which the profiler's clock and time_ns may differ


class _MallInfo(ctypes.Structure):
    _fields_ = [
        ("arena", ctypes.c_size_t),
        ("ordblks", ctypes.c_size_t),
        ("smblks", ctypes.c_size_t),
        ("hblks", ctypes.c_size_t),
        ("hblkhd", ctypes.c_size_t),  # bytes in blocks with a mapping of their own
        ("usmblks", ctypes.c_size_t),
        ("fsmblks", ctypes.c_size_t),
        ("uordblks", ctypes.c_size_t),  # bytes in use in the heaps
        ("fordblks", ctypes.c_size_t),
        ("keepcost", ctypes.c_size_t),
    ]


@cache
def malloc_counter() -> Callable[[], int] | None:
    """A function that returns the bytes in use by malloc, or None where the C library has none."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError):  # musl, or glibc before 2.33
        return None
    mallinfo2.restype = _MallInfo
    mallinfo2.argtypes = ()

    def count() -> int:
        info = mallinfo2()
        return int(info.uordblks + info.hblkhd)

    return count


class MallocSampler:
    """Context in which a thread reads malloc's counter; `unrecorded` compares with PyTorch's."""

    def __init__(self) -> None:
        self._counter = malloc_counter()
        self._before, self._after, self._used = array("q"), array("q"), array("q")
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def _sample(self) -> None:
        assert self._counter is not None
        before = time.time_ns()
        used = self._counter()
        self._before.append(before)
        self._used.append(used)
        self._after.append(time.time_ns())

    def _run(self) -> None:
        while not self._stop.is_set():
            self._sample()
            time.sleep(_INTERVAL)

    def __enter__(self) -> MallocSampler:
        if self._counter is not None:
            self._thread = threading.Thread(target=self._run, name=__name__, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._sample()  # the level to which everything temporary has returned

    def unrecorded(self, timeline: Timeline) -> int | None:
        """Most bytes held at one time beside recorded blocks and given back later; None: unknown.

        What is not given back does not count: the profiler's records, Python's objects, caches.
        Near an allocation it is unknown whether a reading came before or after it; each reading is
        therefore taken with the bounds that the nearby events allow, and the answer is a lower one.
        """
        if not self._used:
            return None
        highs, lows = [], []
        for before, after, used in zip(self._before, self._after, self._used, strict=True):
            first = bisect_left(timeline.times, before - _CLOCK_SLACK)
            last = bisect_right(timeline.times, after + _CLOCK_SLACK)
            possible = timeline.live[max(first - 1, 0) : last]
            if first == 0:
                possible = [timeline.start, *possible]
            lows.append(used - max(possible))
            highs.append(used - min(possible))
        returned_to = list(accumulate(reversed(highs), min))[::-1]
        return max(0, *(low - floor for low, floor in zip(lows, returned_to, strict=True)))
