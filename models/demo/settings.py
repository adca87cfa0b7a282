"""What a run of the demo is made of."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """The configuration of a run; all of it goes into the report."""

    steps: int = 250
    batch: int = 4
    crop: tuple[int, int] = (96, 112)
    channels: tuple[int, ...] = (32, 64, 128)
    depths: tuple[int, ...] = (8, 8, 8)
    learning_rate: float = 1e-2
    held_out_every: int = 5
    seed: int = 0
    device: str = "cpu"


# To see in seconds that everything works; it learns next to nothing.
QUICK = Settings(steps=4, batch=2, crop=(64, 64), channels=(16, 32, 64), depths=(3, 3, 3))
