"""What is measured: everything that a figure depends on besides the machine."""

from __future__ import annotations

from dataclasses import dataclass

from revgrad.benchmarks.sequence.settings import Settings


@dataclass(frozen=True)
class Point:
    """Images of one training step.

    Attributes:
        batch: Their number.
        size: Of both axes.
        classes: Number of classes.
    """

    batch: int
    size: int = 128
    classes: int = 2

    def __str__(self) -> str:
        return f"{self.batch} of {self.size} x {self.size}, {self.classes} classes"


# The paper's: LIDC by batch, and the prostate set by size.
LIDC = tuple(Point(batch) for batch in (12, 24, 36, 48, 56))
PROSTATE = tuple(Point(12, size, 3) for size in (192, 256, 384))
QUICK = (Point(2, 16),)
QUICK_CHANNELS = (4, 6, 8)


@dataclass(frozen=True)
class Plan:
    """A whole run.

    Attributes:
        points: What is measured, the first also in time.
        variants: Names of variants, see `revgrad.benchmarks.revphiseg.networks`.
        channels_last: Memory format of the images and the weights.
        device: "cpu" or "cuda".
        threads: Of the CPU.
        repeats: Rounds of the time measurement; 0: none.
        quick: Whether the networks are tiny.
    """

    points: tuple[Point, ...]
    variants: tuple[str, ...]
    channels_last: bool
    device: str
    threads: int
    repeats: int
    quick: bool

    def settings(self, point: Point) -> Settings:
        """How the tasks of a point run."""
        return Settings(
            channels=1,
            size=point.size,
            batch=point.batch,
            channels_last=self.channels_last,
            device=self.device,
            threads=self.threads,
        )
