"""What is asked, and of which network."""

from __future__ import annotations

from dataclasses import dataclass

from revgrad.benchmarks.peers import ADAPTORS

# Not in question: the one needs the CPU's memory as well, the other has to compile for each size.
METHODS = tuple(
    name for name, adaptor in ADAPTORS.items() if name != "offload" and not adaptor.compiles
)
# What `revgrad.memory.estimate` can follow; other libraries free memory in ways of their own.
ESTIMATED = ("plain", "checkpoint", "checkpoint-selective", "revgrad", "revgrad-exact")


@dataclass(frozen=True)
class Question:
    """What shall be as large as possible.

    Attributes:
        name: For tables.
        spatial_dims: Of the network.
        unit: One size is this many samples or pixels along each axis.
        side: Pixels along each axis, or 0 where that is the question.
    """

    name: str
    spatial_dims: int
    unit: int
    side: int = 0

    def shape(self, size: int) -> tuple[int, ...]:
        """Shape of the input of that size."""
        if self.side:
            return (size * self.unit, 1, *(self.side,) * self.spatial_dims)
        return (1, 1, *(size * self.unit,) * self.spatial_dims)

    def volume(self, size: int) -> int:
        """Pixels of the whole input."""
        batch, _, *sides = self.shape(size)
        for side in sides:
            batch *= side
        return batch


@dataclass(frozen=True)
class Settings:
    """Everything that a figure depends on besides the machine.

    Attributes:
        budget: Bytes that CUDA's allocator may reserve.
        channels: Of the reversible part; each of the two streams has half of them.
        depth: Number of sub-networks.
        dtype: "float32", or "bfloat16" for autocast.
        device: "cuda": measured there; "cpu": estimated.
        methods: Names of adaptors.
        questions: What is asked.
        repeats: Steps that are timed.
    """

    budget: int
    channels: int
    depth: int
    dtype: str
    device: str
    methods: tuple[str, ...]
    questions: tuple[Question, ...]
    repeats: int = 5
