"""What is measured: everything that a figure depends on besides the machine."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """The network, its input and how it runs.

    Attributes:
        channels: Of the input; each of the two streams has half of them.
        size: Of every spatial axis.
        batch: Number of samples.
        spatial_dims: 2 or 3.
        dtype: "float32", or "bfloat16" for autocast.
        channels_last: Memory format of the input and the weights.
        device: "cpu" or "cuda".
        threads: Number of threads of the CPU.
    """

    channels: int = 64
    size: int = 128
    batch: int = 1
    spatial_dims: int = 2
    dtype: str = "float32"
    channels_last: bool = False
    device: str = "cpu"
    threads: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the input."""
        return (self.batch, self.channels, *(self.size,) * self.spatial_dims)

    @property
    def activation(self) -> int:
        """Bytes of one full activation, the unit A: the input of the sequence in float32."""
        return 4 * self.batch * self.channels * self.size**self.spatial_dims


@dataclass(frozen=True)
class Plan:
    """A whole run.

    Attributes:
        settings: What is measured.
        variants: Names of adaptors, "plain" first.
        depths: Numbers of sub-networks, each even.
        repeats: Rounds of the time measurement.
    """

    settings: Settings
    variants: tuple[str, ...]
    depths: tuple[int, ...]
    repeats: int
