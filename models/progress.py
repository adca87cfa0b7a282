"""One line that tells how far a long run has come."""

import sys
import time
from typing import TextIO


class Progress:
    """Prints "step 3/300", a text and the time left.

    On a terminal the line is written over and over; into a file or pipe goes a line at every
    tenth of the way.

    Args:
        total: steps of the whole run.
        stream: where to; standard output by default.
        done: steps that an earlier run took, which tell nothing of this one's pace.
    """

    def __init__(self, total: int, stream: TextIO | None = None, done: int = 0) -> None:
        self.total = total
        self._before = done
        self._stream = sys.stdout if stream is None else stream
        self._live = self._stream.isatty()
        self._start = time.monotonic()

    def __call__(self, done: int, text: str) -> None:
        """Show that ``done`` of ``total`` steps are behind."""
        passed_a_tenth = done * 10 // self.total > (done - 1) * 10 // self.total
        if self._live or passed_a_tenth:
            self._write(f"step {done}/{self.total}  {text}  {self._time(done)}", done == self.total)

    def _write(self, line: str, last: bool) -> None:
        if self._live:  # "\033[K" clears what a longer line has left behind
            line = f"\r\033[K{line}"
        self._stream.write(line + ("\n" if last or not self._live else ""))
        self._stream.flush()

    def _time(self, done: int) -> str:
        elapsed = time.monotonic() - self._start
        if done == self.total:
            return f"took {_clock(elapsed)}"
        return f"{_clock(elapsed * (self.total - done) / (done - self._before))} left"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
