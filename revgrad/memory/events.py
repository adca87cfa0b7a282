"""From a profiler recording to blocks of memory with a beginning and an end.

The profiler reports every allocation and release of PyTorch's allocators with address, signed size
and time, and every node of the backward pass. Nothing here is sampled: on CPU the sum of the blocks
is exact to the byte. Sizes are in bytes, times in nanoseconds since the epoch.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch._C._autograd import _profiler_enabled
from torch._C._profiler import _EventType, _RecordFunctionFast
from torch.profiler import ProfilerActivity, profile

_ENGINE_NODE = "autograd::engine::evaluate_function"
_MARK = "revgrad.memory"
# aten::convolution, aten::convolution_backward, mkldnn::_convolution_pointwise, ...; whatever runs
# inside of them (mkldnn, cudnn, slow_conv2d) belongs to the outermost.
_CONVOLUTION = re.compile(r"\w+::\w*convolution")


class Kind(Enum):
    """What happened."""

    ALLOCATED = "allocated"
    FREED = "freed"
    NODE = "node"  # a node of the backward pass begins
    BASELINE_FREED = "baseline freed"  # a mark: memory from before the recording was released
    GRADIENT = "gradient"  # a mark: this address holds the gradient of a parameter
    STORED = "stored"  # a mark: a reversible layer stores what this address holds


@dataclass(frozen=True)
class Event:
    """One event of a recording.

    `in_backward`: it happened inside a node of the backward pass; `convolution`: the number of the
    convolution operator in which it happened, or 0; `number`: what the mark says besides.
    """

    time: int
    kind: Kind
    address: int = 0
    size: int = 0
    in_backward: bool = False
    convolution: int = 0
    number: int = 0


@dataclass
class Block:
    """A piece of memory, alive from event number `born` up to (not including) number `died`."""

    address: int
    size: int
    born: int = -1  # -1: alive before the recording
    died: int | None = None  # None: alive at its end
    in_backward: bool = False
    convolution: int = 0  # the convolution operator that allocated it
    scratch: bool = False  # that operator also released it
    gradient: bool = False
    stored: int | None = None  # the number of the mark of the layer that stores it

    def alive_at(self, index: int) -> bool:
        """Whether the block is held right after event number `index` (-1: at the start)."""
        return self.born <= index and (self.died is None or self.died > index)


def mark(kind: Kind, address: int, number: int = 0) -> None:
    """Put a mark into the running recording: it is ordered exactly between its neighbours."""
    with _RecordFunctionFast(f"{_MARK}/{kind.name}/{address}/{number}"):
        pass


@contextlib.contextmanager
def recording() -> Iterator[profile]:
    """A profiler that records memory. The events can be read once the context has ended.

    PyTorch has one profiler a thread: to start a second ends the first, and what it has recorded
    is lost without a word. That is an error here, whichever of the two is this one.
    """
    if _profiler_enabled():
        raise RuntimeError("memory is measured with the profiler, which is already recording")
    # libkineto reads its log level once, when it is first used; unset, it prints two lines a
    # recording, above the level of errors.
    name = "KINETO_LOG_LEVEL"
    quiet = name not in os.environ
    if quiet:
        os.environ[name] = "6"
    try:
        # The CPU activity is enough for CUDA's memory events too: the allocators report them.
        recorder = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        with recorder:
            yield recorder
            if not _profiler_enabled():
                raise RuntimeError("memory is measured with the profiler: the step may not use it")
    finally:
        if quiet:
            os.environ.pop(name, None)


def read_events(recorder: profile, device: torch.device) -> list[Event]:
    """All events of a finished recording that concern `device`, in the order of time."""
    events: list[Event] = []
    assert recorder.profiler is not None and recorder.profiler.kineto_results is not None
    roots = recorder.profiler.kineto_results.experimental_event_tree()
    # Depth first and with an own stack: the tree is as deep as nested checkpoints make it.
    stack: list[tuple[Any, bool, int]] = [(root, False, 0) for root in reversed(roots)]
    numbers = itertools.count(1)
    while stack:
        node, in_backward, convolution = stack.pop()
        time = node.start_time_ns
        if node.tag == _EventType.Allocation:
            fields = node.extra_fields
            if fields.device == device:
                kind = Kind.ALLOCATED if fields.alloc_size > 0 else Kind.FREED
                address, size = fields.ptr or 0, abs(fields.alloc_size)
                events.append(Event(time, kind, address, size, in_backward, convolution))
        elif node.name.startswith(_MARK + "/"):
            _, kind_name, *numbers_of_mark = node.name.split("/")
            address, number = map(int, numbers_of_mark)
            events.append(Event(time, Kind[kind_name], address, number=number))
        elif node.name.startswith(_ENGINE_NODE):
            events.append(Event(time, Kind.NODE))
            in_backward = True
        elif not convolution and _CONVOLUTION.match(node.name):
            convolution = next(numbers)
        stack.extend((child, in_backward, convolution) for child in reversed(node.children))
    # Threads are separate trees. The sort is stable, so one thread's order stays as recorded.
    events.sort(key=lambda event: event.time)
    return events


class Timeline:
    """The blocks of a recording, and the bytes alive after each event.

    Args:
        baseline: size of each block that was alive before, by address.
        events: the recording, in order.
        baseline_frees_reported: whether FREED events count for baseline blocks. The CUDA allocator
            knows all its blocks. The CPU allocator does not: it says nothing, or takes the size
            from an older recording; there only marks count.
    """

    def __init__(
        self, baseline: dict[int, int], events: Iterable[Event], *, baseline_frees_reported: bool
    ) -> None:
        self.blocks = [Block(address, size) for address, size in baseline.items()]
        self.start = sum(baseline.values())
        self.times: list[int] = []
        self.live: list[int] = []
        self.nodes: list[int] = []
        self.baseline_freed: set[int] = set()
        # By address; when all events are through, what is alive at the end.
        self.held = held = {block.address: block for block in self.blocks}
        total = self.start

        def release(address: int, index: int, convolution: int = 0) -> int:
            block = held.pop(address)
            block.died = index
            block.scratch = convolution != 0 and block.convolution == convolution
            if block.born == -1:
                self.baseline_freed.add(address)
            return block.size

        for index, event in enumerate(events):
            block = held.get(event.address)
            of_baseline = block is not None and block.born == -1
            if event.kind is Kind.ALLOCATED:
                if block is not None:  # two blocks cannot share an address: a release went unseen
                    total -= release(event.address, index)
                block = Block(
                    event.address,
                    event.size,
                    index,
                    in_backward=event.in_backward,
                    convolution=event.convolution,
                )
                self.blocks.append(block)
                held[event.address] = block
                total += event.size
            elif event.kind is Kind.FREED:
                if block is not None and (baseline_frees_reported or not of_baseline):
                    total -= release(event.address, index, event.convolution)
            elif event.kind is Kind.BASELINE_FREED:
                if of_baseline:
                    total -= release(event.address, index)
            elif event.kind is Kind.GRADIENT:
                if block is not None:
                    block.gradient = True
            elif event.kind is Kind.STORED:
                if block is not None:
                    block.stored = event.number
            else:
                self.nodes.append(index)
            self.times.append(event.time)
            self.live.append(total)

        self.peak = max(self.live, default=0)
        self.peak_index = self.live.index(self.peak) if self.live else -1
        if self.start >= self.peak:
            self.peak, self.peak_index = self.start, -1

    def peak_without_scratch(self) -> int:
        """The peak as it would be had the convolutions taken no scratch."""
        change = [0] * len(self.live)
        for block in self.blocks:
            if block.scratch and block.died is not None:
                change[block.born] -= block.size
                change[block.died] += block.size
        without = map(int.__add__, self.live, itertools.accumulate(change))
        return max(self.start, *without) if self.live else self.start

    def kept_for_backward(self, block: Block) -> bool:
        """Whether `block` was made outside the backward pass and outlived the start of the next."""
        if block.born == -1 or block.in_backward:
            return False
        following = bisect_right(self.nodes, block.born)
        return following < len(self.nodes) and block.alive_at(self.nodes[following])
