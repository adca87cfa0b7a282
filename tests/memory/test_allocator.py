"""The model of CUDA's caching allocator, by hand and against what must always hold."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from revgrad.memory.allocator import CachingAllocator, OutOfReach, replay
from revgrad.memory.events import Event, Kind

KIB, MIB = 2**10, 2**20


@pytest.mark.parametrize(
    ("size", "block", "segment"),
    [
        (1, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 1, 10 * MIB, 10 * MIB),  # the rounded size decides
        (11 * MIB, 12 * MIB, 12 * MIB),  # a rest of up to 1 MiB is not cut off
        (21 * MIB + 1, 22 * MIB, 22 * MIB),
    ],
)
def test_one_block(size, block, segment):
    allocator = CachingAllocator()
    allocator.allocate(1, size)
    assert (allocator.allocated, allocator.reserved) == (block, segment)


def test_small_blocks_share_a_segment_and_large_ones_another():
    allocator = CachingAllocator()
    for key in range(4):
        allocator.allocate(key, 512 * KIB)
    assert allocator.reserved == 2 * MIB
    allocator.allocate(4, 5 * MIB)
    allocator.allocate(5, 15 * MIB)  # fills what is left of the 20, but has a size of its own
    assert allocator.reserved == 22 * MIB
    allocator.allocate(6, 512)
    assert allocator.reserved == 24 * MIB


def test_the_smallest_piece_that_fits_is_taken():
    allocator = CachingAllocator()
    for key, size in enumerate((30, 14, 40)):
        allocator.allocate(key, size * MIB)
    for key in range(3):
        allocator.release(key)
    allocator.allocate(3, 13 * MIB)  # into the 14, of which 1 MiB is too small to be cut off
    allocator.allocate(4, 13 * MIB)  # into the 30
    allocator.allocate(5, 17 * MIB)  # into the rest of it
    allocator.allocate(6, 40 * MIB)
    assert allocator.reserved == 84 * MIB
    assert allocator.allocated == 84 * MIB


def test_neighbours_become_one_but_segments_do_not():
    allocator = CachingAllocator()
    for key in range(4):
        allocator.allocate(key, 5 * MIB)  # one segment of 20
    for key in (0, 2, 1, 3):
        allocator.release(key)
    allocator.allocate(4, 20 * MIB)
    assert allocator.reserved == 20 * MIB
    allocator.release(4)
    allocator.allocate(5, 20 * MIB)
    allocator.allocate(6, 20 * MIB)
    for key in (5, 6):
        allocator.release(key)
    allocator.allocate(7, 40 * MIB)
    assert allocator.reserved == 80 * MIB
    assert (allocator.allocated, allocator.peak_allocated) == (40 * MIB, 40 * MIB)


def test_a_hole_is_not_enough_for_a_larger_block():
    allocator = CachingAllocator()
    for key in range(3):
        allocator.allocate(key, 6 * MIB)
    allocator.release(1)
    allocator.allocate(3, 7 * MIB)
    assert allocator.reserved == 40 * MIB


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 64 * MIB)), max_size=60))
def test_pieces_tile_the_segments(actions):
    allocator, keys = CachingAllocator(), []
    for key, (release, size) in enumerate(actions):
        if release and keys:
            allocator.release(keys.pop(size % len(keys)))
        else:
            allocator.allocate(key, size)
            keys.append(key)
        free = sum(entry[0] for pieces in allocator._free.values() for entry in pieces)
        assert allocator.allocated + free == allocator.reserved
        assert allocator.allocated <= allocator.peak_allocated <= allocator.reserved
    for key in keys:
        allocator.release(key)
    assert allocator.allocated == 0
    # No two free pieces are neighbours.
    for pieces in allocator._free.values():
        assert all(piece.before is None and piece.behind is None for *_, piece in pieces)


def test_at_its_limit_it_gives_free_segments_back():
    allocator = CachingAllocator(limit=60 * MIB)
    for key, size in enumerate((20, 20, 5)):
        allocator.allocate(key, size * MIB)
    assert allocator.reserved == 60 * MIB
    allocator.release(0)
    allocator.allocate(3, 15 * MIB)  # what is left behind the 5
    allocator.release(1)
    allocator.allocate(4, 40 * MIB)
    assert (allocator.reserved, allocator.allocated) == (60 * MIB, 60 * MIB)
    allocator.release(2)
    with pytest.raises(OutOfReach):
        allocator.allocate(5, 6 * MIB)
    allocator.allocate(6, 5 * MIB)


def test_replay():
    events = [
        Event(0, Kind.ALLOCATED, 1, 3 * MIB),
        Event(1, Kind.NODE),
        Event(2, Kind.FREED, 1, 3 * MIB),
        Event(3, Kind.ALLOCATED, 2, 3 * MIB),
    ]
    allocator = replay(events)
    assert (allocator.allocated, allocator.reserved) == (3 * MIB, 20 * MIB)


@pytest.mark.cuda
def test_as_the_real_one():
    """The same blocks in a fresh CUDA allocator: to the byte."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(), torch.cuda.memory_allocated()
    assert before == (0, 0), "run this test in a process of its own"
    generator = torch.Generator().manual_seed(0)
    allocator, held = CachingAllocator(), {}
    for key in range(300):
        size = int(2 ** (torch.rand((), generator=generator) * 18 + 8))
        if held and torch.rand((), generator=generator) < 0.4:
            gone = next(iter(held))
            del held[gone]
            allocator.release(gone)
        held[key] = torch.empty(size, dtype=torch.uint8, device="cuda")
        allocator.allocate(key, size)
        assert torch.cuda.memory_allocated() == allocator.allocated
        assert torch.cuda.memory_reserved() == allocator.reserved
