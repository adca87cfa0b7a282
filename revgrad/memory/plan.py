"""`plan`: which layers to store, recompute or invert for the fastest step within a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves, tree_map

from revgrad.nn.schedule import INVERT, STORE
from revgrad.nn.sequence import ReversibleSequence

from .devices import device_of
from .estimate import estimate
from .fastest import Cost, fastest, total
from .layer_costs import Call, LayerCost, costs_of_layers, seconds_of, unchanged
from .sizes import parse_bytes
from .trial import trial_run

_MIB = 1024 * 1024
_ESTIMATES = 8  # at most, of schedules on the way to the one that fills the budget


@dataclass(frozen=True)
class PlannedLayer:
    """What a plan says of a layer.

    Attributes:
        name: Where it is: the sequence's name in the model, and the layer's place in it.
        kind: Its class.
        way: "invert", "recompute" or "store".
        bytes: What that keeps for the backward pass.
        seconds: By how much it is faster than inverting, in a step.
    """

    name: str
    kind: str
    way: str
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """A schedule for each sequence of a model, and what a training step then takes.

    Attributes:
        schedules: By the name of the sequence in the model ("" for the model itself): ways by
            place, as `ReversibleSequence.schedule` takes them.
        layers: What each layer keeps and saves.
        budget: Bytes that the step was to take at most.
        peak: Bytes that it takes at its peak, as `estimate` says.
        seconds: How long it takes: the step with all layers inverted, as measured, less what was
            measured that the layers save.
        lowest: The peak with all layers inverted.
        highest: The peak with all layers stored, which is ordinary autograd.
        slowest: Seconds with all layers inverted, as measured.
    """

    schedules: dict[str, dict[str, str]]
    layers: tuple[PlannedLayer, ...]
    budget: int
    peak: int
    seconds: float
    lowest: int
    highest: int
    slowest: float

    def apply(self, model: nn.Module) -> None:
        """Give the sequences of a model, or of a copy of it, their schedules."""
        for name, schedule in self.schedules.items():
            sequence = dict(model.named_modules()).get(name)
            if not isinstance(sequence, ReversibleSequence):
                raise ValueError(
                    f"the plan is for a model with a ReversibleSequence at {name!r}, which this "
                    f"{type(model).__name__} has not; give the model itself, not what wraps it"
                )
            sequence.schedule = schedule

    def __str__(self) -> str:
        head = ("layer", "", "way", "MiB kept", "ms saved")
        rows = [
            (la.name, la.kind, la.way, f"{la.bytes / _MIB:.2f}", f"{1000 * la.seconds:.2f}")
            for la in self.layers
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [_aligned(row, widths) for row in (head, *rows)]
        return "\n".join(
            [
                *lines,
                f"peak {self.peak / _MIB:.2f} MiB of {self.budget / _MIB:.2f} MiB; all inverted "
                f"{self.lowest / _MIB:.2f}, all stored {self.highest / _MIB:.2f}",
                f"step {1000 * self.seconds:.2f} ms; all inverted {1000 * self.slowest:.2f}",
            ]
        )


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    pairs = list(zip(row, widths, strict=True))
    return "  ".join([*(t.ljust(w) for t, w in pairs[:3]), *(t.rjust(w) for t, w in pairs[3:])])


def plan(
    model: nn.Module,
    input: Tensor | Iterable[Any] | Mapping[str, Any],
    memory: str | float,
    optimizer: Callable[[Iterable[Tensor]], Optimizer] | None = None,
    dtype: torch.dtype | None = None,
    *,
    loss: Callable[[Any], Tensor] | None = None,
    repeats: int = 5,
    apply: bool = True,
) -> Plan:
    """Find the fastest schedule of a model's reversible sequences within a budget of memory.

    Each layer is run by itself on the model's device, in each way; its schedule is the solution of
    a knapsack, see `revgrad.memory.fastest`. The peak of a training step with that schedule comes
    from `revgrad.memory.estimate`, and what is left of the budget is given out again until it is
    used up. Parameters, their gradients, buffers and random generators are left as they are; hooks
    run, and can ask `revgrad.memory.is_trial_run`. ::

        print(revgrad.memory.plan(net, x, memory="2GB", optimizer=torch.optim.AdamW))

    Args:
        model: A `ReversibleSequence`, or a network with some inside; those that stand inside of
            sub-networks are left as they are.
        input: A tensor; a tuple or list of arguments; or a dictionary of keyword arguments. A
            typical batch, on the model's device.
        memory: The most that a training step may take at its peak, parameters, gradients and the
            optimizer's state included: "2GB", "800 MiB" or a whole number of bytes. Or a fraction,
            0.0 to 1.0, of the way from the peak with all layers inverted to that with all stored.
        optimizer: As for `estimate`, whose memory counts.
        dtype: torch.bfloat16 or torch.float16: forward and loss run under autocast to this type.
        loss: From the model's output to a number. None: its sum.
        repeats: How often each way of a layer is timed; the shortest time counts.
        apply: Whether the model's sequences get their schedules.

    Returns:
        The plan; `print` shows it as a table.

    Raises:
        TypeError, ValueError: An argument is none of the above, or the model has no sequence.
        ValueError: Even with all layers inverted the step takes more.
    """
    budget = _budget(memory)
    if not isinstance(repeats, int) or repeats < 1:
        raise ValueError(f"repeats must be at least 1, not {repeats!r}")
    device = device_of(model.parameters())
    step = _Step(model, input, loss, dtype, device)
    before = {call.name: call.sequence.schedule for call in step.calls}
    try:
        with unchanged(model, device), trial_run():
            made = _made(step, optimizer, budget, repeats)
    finally:
        for call in step.calls:
            call.sequence.schedule = before[call.name]
    if apply:
        made.apply(model)
    return made


class _Step:
    """A training step of a model, and the sequences that take part in it."""

    def __init__(
        self,
        model: nn.Module,
        input: Any,
        loss: Callable[[Any], Tensor] | None,
        dtype: torch.dtype | None,
        device: torch.device,
    ) -> None:
        self.model, self.input, self.loss, self.dtype = model, input, loss, dtype
        self.device = device
        self.args, self.kwargs = _arguments(input)
        self.calls = [Call(name, found) for name, found in _outermost(model)]
        if not self.calls:
            raise ValueError("the model has no ReversibleSequence, so there is nothing to plan")
        if not self.leaves():
            raise ValueError(
                "nothing in the model or its input requires a gradient, so no step trains anything"
            )
        for call in self.calls:
            if not call.sequence.save_memory:
                raise ValueError(
                    f"{call.name or 'the sequence'} has save_memory=False, so that its schedule "
                    "has no effect; set it to True"
                )

    def autocast(self) -> AbstractContextManager[Any]:
        """Autocast as the step uses it."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def leaves(self) -> list[Tensor]:
        """What gets a gradient."""
        given = [t for t in tree_leaves((self.args, self.kwargs)) if isinstance(t, Tensor)]
        return [t for t in (*self.model.parameters(), *given) if t.requires_grad]

    def watch_calls(self) -> None:
        """Run the model forward, and note the arguments of its sequences."""
        handles = []
        for call in self.calls:

            def seen(_: nn.Module, args: Any, kwargs: Any, call: Call = call) -> None:
                args, kwargs = tree_map(_detached, (args, kwargs))
                call.note(args, kwargs, self.device)

            handles.append(call.sequence.register_forward_pre_hook(seen, with_kwargs=True))
        try:
            with torch.no_grad(), self.autocast():
                self.model(*self.args, **self.kwargs)
        finally:
            for handle in handles:
                handle.remove()
        self.calls = [call for call in self.calls if call.times]

    def run(self) -> None:
        """Run the step once; gradients go nowhere."""
        with torch.enable_grad():
            with self.autocast():
                output = self.model(*self.args, **self.kwargs)
                loss = _sum(output) if self.loss is None else self.loss(output)
            torch.autograd.grad(loss, self.leaves(), allow_unused=True)

    def schedule(self, layers: Sequence[LayerCost], ways: Iterable[str]) -> None:
        """Give the sequences a way for each layer."""
        for name, schedule in _schedules(layers, ways).items():
            sequence = self.model.get_submodule(name)
            assert isinstance(sequence, ReversibleSequence)
            sequence.schedule = schedule


def _made(
    step: _Step,
    optimizer: Callable[[Iterable[Tensor]], Optimizer] | None,
    budget: int | float,
    repeats: int,
) -> Plan:
    """The plan of a step."""
    step.watch_calls()
    layers = costs_of_layers(step.calls, repeats, step.device)
    peaks: dict[tuple[str, ...], int] = {}

    def peak(ways: Sequence[str]) -> int:
        key = tuple(ways)
        if key not in peaks:
            step.schedule(layers, ways)
            options: dict[str, Any] = {"loss": step.loss, "device": step.device.type}
            found = estimate(step.model, step.input, optimizer, step.dtype, **options)
            peaks[key] = found.allocated
        return peaks[key]

    lowest, highest = (peak([way] * len(layers)) for way in (INVERT, STORE))
    if isinstance(budget, float):
        # Of a small network storing all may take less than inverting all.
        budget = lowest + round(budget * max(highest - lowest, 0))
    if budget < lowest:
        raise ValueError(
            f"memory={budget} bytes is not enough: with all layers inverted the step takes {lowest}"
            f" ({lowest / _MIB:.1f} MiB). Take a smaller batch, or see what `estimate` says it "
            "consists of"
        )
    ways = _within([layer.cost for layer in layers], budget, lowest, peak)
    step.schedule(layers, [INVERT] * len(layers))
    slowest = seconds_of(step.run, step.device, repeats)
    return _plan(layers, ways, budget, peak(ways), (lowest, highest), slowest)


def _within(
    costs: Sequence[Cost], budget: int, lowest: int, peak: Callable[[Sequence[str]], int]
) -> list[str]:
    """The fastest schedule whose peak is within the budget.

    The allowance of what layers keep is not the difference of the peaks: what they keep may be
    gone at the peak, or a stored layer take less to go back than an inverted one. So it is raised
    and lowered until the peak fills the budget.
    """
    best = [INVERT] * len(costs)
    low, high = 0, sum(cost.store + cost.state + cost.store_space for cost in costs)
    allowance = high  # what is fastest of all may fit
    tried = set()
    for number in range(_ESTIMATES):
        ways = fastest(costs, allowance)
        if tuple(ways) in tried:
            break
        tried.add(tuple(ways))
        left = budget - peak(ways)
        if left >= 0 and total(costs, ways)[1] > total(costs, best)[1]:
            best = ways
        low, high = (allowance, high) if left >= 0 else (low, allowance)
        allowance = budget - lowest if number == 0 else allowance + left
        if not low < allowance < high:
            allowance = (low + high) // 2
    return best


def _plan(
    layers: Sequence[LayerCost],
    ways: Sequence[str],
    budget: int,
    peak: int,
    bounds: tuple[int, int],
    slowest: float,
) -> Plan:
    planned, on_tape = [], False
    for layer, way in zip(layers, ways, strict=True):
        size, seconds = layer.cost.of(way, on_tape and not layer.cost.first)
        name = f"{layer.sequence}.{layer.place}" if layer.sequence else layer.place
        planned.append(PlannedLayer(name, layer.kind, way, size, seconds))
        on_tape = way != STORE
    return Plan(
        schedules=_schedules(layers, ways),
        layers=tuple(planned),
        budget=budget,
        peak=peak,
        seconds=slowest - sum(la.seconds for la in planned),
        lowest=bounds[0],
        highest=bounds[1],
        slowest=slowest,
    )


def _schedules(layers: Sequence[LayerCost], ways: Iterable[str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for layer, way in zip(layers, ways, strict=True):
        found.setdefault(layer.sequence, {})[layer.place] = way
    return found


def _outermost(module: nn.Module, name: str = "") -> Iterable[tuple[str, ReversibleSequence]]:
    """The sequences of a module that are inside of no other, with their names."""
    if isinstance(module, ReversibleSequence):
        yield name, module
        return
    for key, child in module.named_children():
        yield from _outermost(child, f"{name}.{key}" if name else key)


def _budget(memory: Any) -> int | float:
    """Bytes, or a fraction as a float."""
    if isinstance(memory, str):
        return parse_bytes(memory)
    if isinstance(memory, bool) or not isinstance(memory, int | float):
        raise TypeError(
            f'memory must be a size such as "2GB", a whole number of bytes or a fraction, not '
            f"{type(memory).__name__}"
        )
    if isinstance(memory, float) and not 0 <= memory <= 1:
        raise ValueError(
            f"memory={memory} is a fraction and must lie between 0.0 (all layers inverted) and 1.0 "
            '(all stored); give bytes as a whole number, or as in "2GB"'
        )
    return memory


def _arguments(input: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(input, Tensor):
        return (input,), {}
    if isinstance(input, Mapping):
        return (), dict(input)
    if isinstance(input, tuple | list) and any(isinstance(t, Tensor) for t in tree_leaves(input)):
        return tuple(input), {}
    raise TypeError(
        "input must be a tensor, a tuple of arguments with tensors among them or a dictionary of "
        f"keyword arguments, not {input!r}"
    )


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _sum(output: Any) -> Tensor:
    found = [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()]
    return sum((t.sum() for t in found[1:]), found[0].sum())
