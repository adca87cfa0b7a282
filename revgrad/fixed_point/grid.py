"""The grid of fixed-point numbers, and the two conversions between it and floats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from revgrad.dataless import device_type

MAX_FRACTION_BITS = 30

# Elements converted at a time. On a CPU the piece stays in the cache from one operation to the
# next; on a GPU it only bounds the memory of intermediate results.
_PIECE = 2**16
_PIECE_ON_ACCELERATORS = 2**26


@dataclass(frozen=True)
class Grid:
    """The numbers n * 2**-fraction_bits for 32-bit integers n.

    Args:
        fraction_bits: Binary digits behind the point, 0 to 30. Numbers are less than
            2**(31 - fraction_bits) in size.
        dtype: The floating-point type in which sub-networks see the numbers.
    """

    fraction_bits: int
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        bits = self.fraction_bits
        if isinstance(bits, bool) or not isinstance(bits, int):
            raise TypeError(f"fraction_bits must be an int, not {type(bits).__name__}")
        if not 0 <= bits <= MAX_FRACTION_BITS:
            raise ValueError(f"fraction_bits must be 0 to {MAX_FRACTION_BITS}, not {bits}")
        if not self.dtype.is_floating_point:
            raise TypeError(f"fixed-point numbers stand for real floats, not for {self.dtype}")

    @property
    def step(self) -> float:
        """Distance between neighbours."""
        return 2.0**-self.fraction_bits

    @property
    def limit(self) -> float:
        """All numbers are smaller than this in size."""
        return 2.0 ** (31 - self.fraction_bits)

    @property
    def gradient_dtype(self) -> torch.dtype:
        """Gradients of half-precision numbers are summed up in float32."""
        return torch.promote_types(self.dtype, torch.float32)

    def round(self, value: Tensor) -> Tensor:
        """The nearest integers n (ties to even), as int32.

        Values beyond the limit and those that are not finite give what the machine makes of them.
        """
        integers = torch.empty_like(value, dtype=torch.int32)
        for target, source in _pieces(integers, value):
            target.copy_(self._scaled(source))
        return integers

    def subtract_(self, integers: Tensor, value: Tensor) -> Tensor:
        """Subtract the rounded value in place, without another tensor of that size."""
        for target, source in _pieces(integers, value):
            target.sub_(self._scaled(source).to(torch.int32))
        return integers

    def floats(self, integers: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The numbers in new memory, rounded to what the type holds (float32: 24 binary digits).

        Args:
            integers: n, int32.
            dtype: Another type than the grid's own.
        """
        return integers.to(self.gradient_dtype).mul_(self.step).to(dtype or self.dtype)

    def _scaled(self, value: Tensor) -> Tensor:
        work = torch.promote_types(value.dtype, torch.float32)
        return (value.to(work) * 2.0**self.fraction_bits).round_()


def _pieces(*tensors: Tensor) -> Iterator[Sequence[Tensor]]:
    """The tensors piece by piece: along memory if they lie there alike, else along an axis."""
    first = tensors[0]
    size = _PIECE if device_type(first) == "cpu" else _PIECE_ON_ACCELERATORS
    if first.numel() <= size or any(t.shape != first.shape for t in tensors):
        yield tensors
        return
    if _is_dense(first) and all(t.stride() == first.stride() for t in tensors):
        flat = (t.as_strided((t.numel(),), (1,)).split(size) for t in tensors)
        yield from zip(*flat, strict=True)
        return
    axis = max(range(first.dim()), key=first.shape.__getitem__)
    length = max(1, first.shape[axis] * size // first.numel())
    yield from zip(*(t.split(length, axis) for t in tensors), strict=True)


def _is_dense(tensor: Tensor) -> bool:
    """Whether its elements fill a stretch of memory, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True
