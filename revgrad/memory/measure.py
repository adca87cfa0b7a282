"""`measure`: the peak memory of one training step, by what the bytes are there for."""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from revgrad.autograd.observers import listening_to_stored

from .anatomy import aligned, anatomy
from .devices import device_of, resolve
from .events import Kind, Timeline, mark, read_events, recording
from .storages import StorageWatch, live_storages, storage_of
from .unrecorded import MallocSampler


@dataclass(frozen=True)
class MemoryReport:
    """The peak of one step, in bytes.

    `peak` is the sum of `parameters`, `gradients`, `kept_for_backward`, `workspace`, `scratch` and
    `other`, each as it was at the moment of the peak (the first one, where several are equal).

    Attributes:
        peak: bytes alive in PyTorch's tensors on the device, including those from before the step.
        parameters: the parameters' storages.
        gradients: what is, or has become by the end of the step, the `.grad` of a parameter.
        kept_for_backward: made outside the backward pass, still alive when the next backward pass
            began, and alive at the peak. That is what autograd saves, and what the step itself
            holds on to (its output, the loss, the gradient that starts the backward pass).
        workspace: all else that the step allocated: temporaries, gradients on their way, what a
            checkpoint or a reversible layer recomputes.
        scratch: what the convolution that runs at the peak allocated and gave back by itself:
            oneDNN's reordered copies, cuDNN's workspace. It depends on the library, the layout and
            the machine, not on the network's design.
        other: alive before the step and no parameter: inputs, buffers, the optimizer's state.
        peak_without_scratch: the peak as it would be if convolutions took no scratch. It may lie
            elsewhere in the step than `peak`.
        unrecorded: not part of `peak`. The most that was held at one time, at whatever point of
            the step, by kernels' worker threads and by libraries with their own malloc, which the
            profiler does not see. It is sampled: a lower bound that differs from run to run, below
            a megabyte for most networks. None where it cannot be known: on CUDA (where the
            allocator's counter sees all threads), or where the C library has no `mallinfo2`.
        device: where it was measured, as a string.
        stored_by: of `kept_for_backward`, what reversible layers store, by layer: the output where
            the tape starts anew (`anchor_every`), the input of a layer that is recomputed or, in
            exact arithmetic, has no exact form, and the state before a layer that is stored.
    """

    peak: int
    parameters: int
    gradients: int
    kept_for_backward: int
    workspace: int
    scratch: int
    other: int
    peak_without_scratch: int
    unrecorded: int | None
    device: str
    stored_by: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        rows: list[tuple[str, int | None]] = [
            (f"peak on {self.device}", self.peak),
            ("  parameters", self.parameters),
            ("  gradients", self.gradients),
            ("  kept for backward", self.kept_for_backward),
            *((f"    by {where}", size) for where, size in self.stored_by.items()),
            ("  workspace", self.workspace),
            ("  convolution scratch", self.scratch),
            ("  other (alive before)", self.other),
            ("peak without scratch", self.peak_without_scratch),
            ("unrecorded (sampled)", self.unrecorded),
        ]
        return aligned(rows)


def measure(
    step: Callable[[], object],
    module: nn.Module | Iterable[torch.Tensor] | None = None,
    *,
    device: torch.device | str | None = None,
    warmup: int = 1,
) -> MemoryReport:
    """Measure the peak memory of one call of `step`, by category, on CPU or CUDA.

    Before each run the gradients of the parameters are set to None, as `zero_grad` does: the
    gradients' memory is then part of the step. The warm-up runs let the optimizer make its state
    and libraries fill their caches; they are real steps, and change the weights if `step` does.

    On CPU, tensors that only C++ holds from before the step, and what threads that the step starts
    by itself allocate, are not seen. Tensors from NumPy or shared memory count like any other. On
    CUDA the allocator's peak statistics are reset.

    Args:
        step: runs one whole training step: forward, backward, perhaps the optimizer.
        module: the module, or the parameters, to report as `parameters` and `gradients`. None:
            every `nn.Parameter` that received a gradient in the warm-up.
        device: "cpu" or "cuda" (with index or without). None: the parameters' device, or the CPU
            if there are none.
        warmup: how many runs come before the measured one.

    Returns:
        The report, in bytes.

    Raises:
        TypeError, ValueError: an argument is not one of the above.
        RuntimeError: PyTorch's profiler is already at work, or `step` starts it itself.
        Whatever `step` raises; the profiler is then closed and every hook removed.
    """
    if not callable(step):
        raise TypeError(f"step must be callable without arguments, not {type(step).__name__}")
    if isinstance(warmup, bool) or not isinstance(warmup, int):
        raise TypeError(f"warmup must be an int, not {type(warmup).__name__}")
    if warmup < 0:
        raise ValueError(f"warmup must be 0 or more, not {warmup}")
    if module is None and warmup == 0:
        raise ValueError("without warm-up runs, module must say which parameters to report")
    given = _given(module)
    parameters = _parameters_of(given)
    place = None
    if device is not None:
        place = resolve(device)
    elif given is not None:
        place = device_of(parameters)

    for _ in range(warmup):
        _clear_gradients(parameters)
        if given is None:
            parameters += _run_and_learn(step, known=parameters)
        else:
            step()
    if isinstance(given, nn.Module):
        parameters = _parameters_of(given)  # lazy modules have made theirs in the warm-up
    _clear_gradients(parameters)
    gc.collect()

    place = place or device_of(parameters)
    parameters = [p for p in parameters if p.device == place]
    run = _measure_cuda if place.type == "cuda" else _measure_cpu
    return run(step, parameters, place)


def _measure_cpu(
    step: Callable[[], object], parameters: list[torch.Tensor], device: torch.device
) -> MemoryReport:
    watch = StorageWatch(live_storages(device), lambda address: mark(Kind.BASELINE_FREED, address))
    sampler, stored = MallocSampler(), _StoredMarks()
    try:
        with recording() as recorder:
            with watch.resized(), _gradients_marked(parameters), stored.marked(), sampler:
                step()
            moved = watch.moved()
    finally:
        watch.close()
    timeline = Timeline(watch.sizes, read_events(recorder, device), baseline_frees_reported=False)
    unseen = moved - timeline.baseline_freed
    if unseen:
        size = sum(watch.sizes[address] for address in unseen)
        warnings.warn(
            f"{len(unseen)} tensors from before the step ({size} bytes) gave up their memory "
            "during it at a time that is not known; they are counted as if they had kept it, so "
            "the peak is an upper bound",
            RuntimeWarning,
            stacklevel=3,
        )
    report = _classify(timeline, parameters, device, stored)
    return replace(report, unrecorded=sampler.unrecorded(timeline))


def _measure_cuda(
    step: Callable[[], object], parameters: list[torch.Tensor], device: torch.device
) -> MemoryReport:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    baseline = {
        block["address"]: block["size"]
        for segment in torch.cuda.memory_snapshot()
        if segment["device"] == device.index
        for block in segment["blocks"]
        if block["state"] == "active_allocated"
    }
    stored = _StoredMarks()
    with recording() as recorder:
        with _gradients_marked(parameters), stored.marked():
            step()
        torch.cuda.synchronize(device)
        counted = torch.cuda.max_memory_allocated(device)
    timeline = Timeline(baseline, read_events(recorder, device), baseline_frees_reported=True)
    report = _classify(timeline, parameters, device, stored)
    # The allocator's own counter also knows of threads that the profiler did not follow.
    unseen = max(0, counted - report.peak)
    return replace(
        report,
        peak=report.peak + unseen,
        workspace=report.workspace + unseen,
        peak_without_scratch=report.peak_without_scratch + unseen,
    )


def _classify(
    timeline: Timeline,
    parameters: list[torch.Tensor],
    device: torch.device,
    stored: _StoredMarks,
) -> MemoryReport:
    """Say of each block that is alive at the peak what it is there for."""
    own = set()
    for parameter in parameters:
        storage = storage_of(parameter)
        if storage is not None:
            own.add(storage.data_ptr())
        gradient = None if parameter.grad is None else storage_of(parameter.grad)
        block = None if gradient is None else timeline.held.get(gradient.data_ptr())
        if block is not None:
            block.gradient = True
    is_parameter = {id(block) for address in own if (block := timeline.held.get(address))}
    sums, stored_by = anatomy(timeline, {"parameters": is_parameter}, stored.names)
    return MemoryReport(
        peak=timeline.peak,
        peak_without_scratch=timeline.peak_without_scratch(),
        unrecorded=None,
        device=str(device),
        stored_by=stored_by,
        **sums,
    )


class _StoredMarks:
    """Marks in a recording what reversible layers store, and keeps the layers' names."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def marked(self) -> contextlib.AbstractContextManager[None]:
        """Within this context, what a layer stores is marked."""
        return listening_to_stored(self._mark)

    def _mark(self, where: str, tensors: tuple[torch.Tensor, ...]) -> None:
        self.names.append(where)
        for tensor in tensors:
            storage = storage_of(tensor)
            if storage is not None:
                mark(Kind.STORED, storage.data_ptr(), len(self.names) - 1)


@contextlib.contextmanager
def _gradients_marked(parameters: Iterable[torch.Tensor]) -> Iterator[None]:
    """Within this context every gradient that reaches a parameter is marked in the recording.

    The mark is needed where nothing is left at the end of the step: an optimizer that steps inside
    the backward pass, or a step that ends with `zero_grad`.
    """

    def seen(parameter: torch.Tensor) -> None:
        storage = None if parameter.grad is None else storage_of(parameter.grad)
        if storage is not None:
            mark(Kind.GRADIENT, storage.data_ptr())

    with gradient_hooks(parameters, seen):
        yield


@contextlib.contextmanager
def gradient_hooks(
    parameters: Iterable[torch.Tensor], hook: Callable[[torch.Tensor], None]
) -> Iterator[None]:
    """Call `hook(parameter)` when a gradient has arrived, before any other hook can take it."""
    handles = []
    try:
        for parameter in parameters:
            if parameter.requires_grad:
                handle = parameter.register_post_accumulate_grad_hook(hook)
                handles.append(handle)
                # One of the user's hooks may set .grad to None: they go behind this one. (Hooks run
                # in the order of insertion; the engine does not heed OrderedDict.move_to_end.)
                hooks = parameter._post_accumulate_grad_hooks
                for key in [key for key in hooks if key != handle.id]:
                    hooks[key] = hooks.pop(key)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _run_and_learn(step: Callable[[], object], known: list[torch.Tensor]) -> list[torch.Tensor]:
    """Run `step` and return the parameters, beside the known, that received a gradient."""
    with torch._C.DisableTorchFunctionSubclass():
        candidates = [
            thing
            for thing in gc.get_objects()
            if issubclass(type(thing), nn.Parameter)
            and not issubclass(type(thing), UninitializedParameter)  # takes no hook
            and thing.requires_grad
            and thing.is_leaf
        ]
    ids = {id(parameter) for parameter in known}
    learned: dict[int, torch.Tensor] = {}

    def seen(parameter: torch.Tensor) -> None:
        if id(parameter) not in ids:
            learned[id(parameter)] = parameter

    with gradient_hooks(candidates, seen):
        step()
    return list(learned.values())


def _clear_gradients(parameters: Iterable[torch.Tensor]) -> None:
    for parameter in parameters:
        parameter.grad = None


def _parameters_of(module: nn.Module | list[torch.Tensor] | None) -> list[torch.Tensor]:
    if module is None:
        return []
    if isinstance(module, nn.Module):
        return list(module.parameters())
    return list(module)


def _given(
    module: nn.Module | Iterable[torch.Tensor] | None,
) -> nn.Module | list[torch.Tensor] | None:
    if module is None or isinstance(module, nn.Module):
        return module
    accepted = "module must be an nn.Module, an iterable of parameters or None"
    if isinstance(module, torch.Tensor) or not isinstance(module, Iterable):
        raise TypeError(f"{accepted}, not {type(module).__name__}")
    items = list(module)
    for number, item in enumerate(items):
        if not isinstance(item, torch.Tensor):
            raise TypeError(f"{accepted}; item {number} is of type {type(item).__name__}")
        if not item.is_leaf:
            raise TypeError(f"{accepted}; item {number} is the result of an operation")
    return list({id(item): item for item in items}.values())
