"""What is measured: everything that a figure depends on besides the machine."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """A whole run.

    Attributes:
        variants: Names of adaptors.
        networks: Names of networks.
        precisions: Names of precisions.
        depths: Numbers of sub-networks, each even.
        seeds: How many times, each with other weights; a figure is the median.
        fraction_bits: Of exact streams.
        channels: Of the input; each of the two streams has half of them.
        size: Of both spatial axes.
        batch: Number of samples.
        device: "cpu" or "cuda".
    """

    variants: tuple[str, ...]
    networks: tuple[str, ...]
    precisions: tuple[str, ...]
    depths: tuple[int, ...]
    seeds: int
    fraction_bits: int = 20
    channels: int = 16
    size: int = 16
    batch: int = 2
    device: str = "cpu"
