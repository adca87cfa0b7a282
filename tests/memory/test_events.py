"""The timeline of blocks, from recordings written by hand (as CUDA's allocator would make them)."""

import torch

from revgrad.memory.events import Event, Kind, Timeline, mark, read_events, recording

CPU = torch.device("cpu")


def timeline(baseline, *events, reported=True):
    listed = [Event(time, *rest) for time, rest in enumerate(events)]
    return Timeline(baseline, listed, baseline_frees_reported=reported)


def test_curve_and_first_peak():
    line = timeline(
        {1: 10},
        (Kind.ALLOCATED, 2, 5),
        (Kind.FREED, 2, 5),
        (Kind.ALLOCATED, 2, 5),
    )
    assert line.live == [15, 10, 15]
    assert (line.peak, line.peak_index) == (15, 0)
    assert [block.alive_at(0) for block in line.blocks] == [True, True, False]


def test_an_empty_recording_peaks_at_its_start():
    line = timeline({1: 10, 2: 20})
    assert (line.peak, line.peak_index, line.peak_without_scratch()) == (30, -1, 30)


def test_a_reported_free_of_the_baseline_counts_only_where_the_allocator_knows():
    events = (Kind.FREED, 1, 99), (Kind.ALLOCATED, 2, 5)
    assert timeline({1: 10}, *events, reported=True).live == [0, 5]
    # On CPU the size would be that of an older recording: not to be believed.
    assert timeline({1: 10}, *events, reported=False).live == [10, 15]
    marked = timeline({1: 10}, (Kind.BASELINE_FREED, 1), *events, reported=False)
    assert marked.live == [0, 0, 5]
    assert marked.baseline_freed == {1}


def test_a_new_block_at_a_held_address_ends_the_old_one():
    line = timeline({1: 10}, (Kind.ALLOCATED, 1, 4), (Kind.FREED, 1, 4), reported=False)
    assert line.live == [4, 0]
    assert line.baseline_freed == {1}


def test_a_free_of_an_unknown_address_is_ignored():
    assert timeline({}, (Kind.FREED, 7, 100), (Kind.ALLOCATED, 7, 3)).live == [0, 3]


def test_kept_for_backward_in_two_rounds():
    line = timeline(
        {1: 1},
        (Kind.ALLOCATED, 2, 1),  # 0: dies before any backward pass
        (Kind.ALLOCATED, 3, 1),  # 1: kept
        (Kind.FREED, 2, 1),
        (Kind.NODE,),  # 3
        (Kind.ALLOCATED, 4, 1, True),  # made in the backward pass, outlives the next one's start
        (Kind.FREED, 3, 1),
        (Kind.ALLOCATED, 5, 1),  # kept in the second round
        (Kind.NODE,),
        (Kind.ALLOCATED, 6, 1),  # after the last backward pass
    )
    kept = {block.address for block in line.blocks if line.kept_for_backward(block)}
    assert kept == {3, 5}


def test_scratch_lives_and_dies_in_one_convolution():
    line = timeline(
        {},
        (Kind.ALLOCATED, 1, 8, False, 1),  # given back by the same convolution
        (Kind.ALLOCATED, 2, 4, False, 1),  # its output: given back elsewhere
        (Kind.FREED, 1, 8, False, 1),
        (Kind.ALLOCATED, 3, 5, False, 2),
        (Kind.FREED, 3, 5, False, 0),
        (Kind.FREED, 2, 4, False, 2),
    )
    assert [block.scratch for block in line.blocks] == [True, False, False]
    assert line.peak == 12
    assert line.peak_without_scratch() == 9


def test_marks_are_ordered_between_allocations():
    with recording() as recorder:
        first = torch.empty(100, dtype=torch.uint8)
        mark(Kind.GRADIENT, first.data_ptr())
        second = torch.empty(50, dtype=torch.uint8)
    events = read_events(recorder, CPU)
    assert [event.kind for event in events] == [Kind.ALLOCATED, Kind.GRADIENT, Kind.ALLOCATED]
    assert [event.size for event in events] == [100, 0, 50]
    assert [event.address for event in events] == [first.data_ptr()] * 2 + [second.data_ptr()]
    assert read_events(recorder, torch.device("cuda", 0))[:1] == [events[1]]


def test_a_convolution_and_its_backward_pass_are_recognised():
    x = torch.randn(1, 4, 8, 8, requires_grad=True)
    weight = torch.randn(4, 4, 3, 3)
    with recording() as recorder:
        torch.nn.functional.conv2d(x, weight).sin().sum().backward()
    events = [event for event in read_events(recorder, CPU) if event.kind is Kind.ALLOCATED]
    assert len({event.convolution for event in events} - {0}) == 2
    assert any(event.in_backward and event.convolution for event in events)
    assert any(event.in_backward and not event.convolution for event in events)
