"""What PyTorch's CUDA allocator would reserve: its rules, without a GPU.

The rules and numbers are those of torch 2.13 (c10/core/AllocatorConfig.h, CUDACachingAllocator)
with its default settings and one stream. All sizes are in bytes.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass

from .events import Event, Kind

_MIB = 1024 * 1024
ROUNDING = 512  # of every block
SMALL = 1 * _MIB  # blocks up to this size live in the small pool
SMALL_SEGMENT = 2 * _MIB
LARGE_SEGMENT = 20 * _MIB  # for blocks below HUGE; larger ones get a segment of their own size
HUGE = 10 * _MIB
SEGMENT_ROUNDING = 2 * _MIB


@dataclass(eq=False)
class _Piece:
    """A stretch of a segment, free or in use, with its neighbours in that segment."""

    size: int
    small: bool
    number: int  # as an address: segments and the pieces of one stay apart and in order
    before: _Piece | None = None
    behind: _Piece | None = None
    free: bool = False


class OutOfReach(Exception):
    """A block does not fit within the limit, even after all free segments were given back."""


class CachingAllocator:
    """Blocks are cut from the smallest free piece that fits, or else from a new segment.

    Args:
        limit: Of what can be reserved. Only where a new segment would pass it, all segments that
            nobody uses are given back; without a limit they are kept for ever.

    Attributes:
        reserved: Bytes of all segments.
        allocated: Bytes of the blocks in use, as `torch.cuda.memory_allocated` counts them.
        peak_allocated: The most of these so far.
    """

    def __init__(self, limit: float = math.inf) -> None:
        self.limit = limit
        self.reserved = self.allocated = self.peak_allocated = 0
        self._end = 0  # of the addresses given out
        # Sorted by size, then place.
        self._free: dict[bool, list[tuple[int, int, _Piece]]] = {True: [], False: []}
        self._used: dict[int, _Piece] = {}

    def allocate(self, key: int, size: int) -> None:
        """Take a block of `size` bytes; `key` names it."""
        size = max(1, -(-size // ROUNDING)) * ROUNDING
        small = size <= SMALL
        piece = self._take(size, small) or self._segment(size, small)
        rest = piece.size - size
        if rest >= ROUNDING if small else rest > SMALL:
            self._cut(piece, size)
        self._used[key] = piece
        self.allocated += piece.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)

    def release(self, key: int) -> None:
        """Give the block `key` back: it becomes one with the free pieces on both sides."""
        piece = self._used.pop(key)
        self.allocated -= piece.size
        if piece.before is not None and piece.before.free:
            self._forget(piece.before)
            piece = self._join(piece.before, piece)
        if piece.behind is not None and piece.behind.free:
            self._forget(piece.behind)
            piece = self._join(piece, piece.behind)
        self._keep(piece)

    def _take(self, size: int, small: bool) -> _Piece | None:
        pieces = self._free[small]
        place = bisect_left(pieces, size, key=lambda entry: entry[0])
        if place == len(pieces):
            return None
        piece = pieces.pop(place)[2]
        piece.free = False
        return piece

    def _segment(self, size: int, small: bool) -> _Piece:
        if small:
            total = SMALL_SEGMENT
        elif size < HUGE:
            total = LARGE_SEGMENT
        else:
            total = -(-size // SEGMENT_ROUNDING) * SEGMENT_ROUNDING
        if self.reserved + total > self.limit:
            self._give_back()
        if self.reserved + total > self.limit:
            raise OutOfReach
        self.reserved += total
        self._end += total
        return _Piece(total, small, self._end - total)

    def _give_back(self) -> None:
        """Let go of every segment that is one free piece."""
        for small, pieces in self._free.items():
            whole = [p for *_, p in pieces if p.before is None and p.behind is None]
            self.reserved -= sum(piece.size for piece in whole)
            self._free[small] = [entry for entry in pieces if entry[2] not in whole]

    def _cut(self, piece: _Piece, size: int) -> None:
        """Shorten a piece to `size`; what is behind it stays free."""
        rest = _Piece(
            piece.size - size, piece.small, piece.number + size, before=piece, behind=piece.behind
        )
        if rest.behind is not None:
            rest.behind.before = rest
        piece.size, piece.behind = size, rest
        self._keep(rest)

    @staticmethod
    def _join(first: _Piece, second: _Piece) -> _Piece:
        first.size += second.size
        first.behind = second.behind
        if first.behind is not None:
            first.behind.before = first
        return first

    def _keep(self, piece: _Piece) -> None:
        piece.free = True
        insort(self._free[piece.small], (piece.size, piece.number, piece))

    def _forget(self, piece: _Piece) -> None:
        pieces = self._free[piece.small]
        del pieces[bisect_left(pieces, (piece.size, piece.number), key=lambda entry: entry[:2])]
        piece.free = False


def replay(events: Iterable[Event], limit: float = math.inf) -> CachingAllocator:
    """An allocator after all that a recording from the very beginning took and gave back.

    Raises:
        OutOfReach: It needed more than the limit.
    """
    allocator = CachingAllocator(limit)
    for event in events:
        if event.kind is Kind.ALLOCATED:
            allocator.allocate(event.address, event.size)
        elif event.kind is Kind.FREED:
            allocator.release(event.address)
    return allocator
