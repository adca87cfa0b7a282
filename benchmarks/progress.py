"""How far a run has come."""

import sys
from typing import TextIO


class Progress:
    """Shows a bar on a terminal, a line for every step elsewhere."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self._done, self._total = 0, total
        self._stream = sys.stderr if stream is None else stream

    def step(self, text: str) -> None:
        """One more step is behind."""
        self._done += 1
        if self._stream.isatty():
            bar = "#" * (30 * self._done // self._total)
            # "\033[K" clears what a longer line has left behind.
            print(f"\r[{bar:<30}] {text}\033[K", end="", file=self._stream, flush=True)
        else:
            print(f"{self._done}/{self._total} {text}", file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the line of the bar."""
        if self._stream.isatty():
            print(file=self._stream)
