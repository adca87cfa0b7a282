"""What is measured: everything that a figure depends on besides the machine."""

from dataclasses import dataclass

from revgrad.benchmarks.sequence.settings import Settings

SMALL, FULL, QUICK = "1/16", "full", "quick"
# Channels of the body's input, and pixels along each of its two axes.
SCALES = {SMALL: (16, 256), FULL: (64, 512)}

LEVELS = 5  # resolutions; each has twice the channels of the one above


@dataclass(frozen=True)
class Plan:
    """A whole run.

    Attributes:
        settings: The input of the body, and how it runs.
        scale: Name of its size, see `SCALES`, or "quick".
        variants: Names of variants, see `revgrad.benchmarks.iunet_table1.networks`.
        depths: Numbers of coupling blocks of each level and side.
        repeats: Rounds of the time measurement.
    """

    settings: Settings
    scale: str
    variants: tuple[str, ...]
    depths: tuple[int, ...]
    repeats: int
