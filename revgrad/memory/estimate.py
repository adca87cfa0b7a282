"""`estimate`: the peak memory of a training step on CUDA, without a GPU and without computing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from revgrad.autograd.observers import listening_to_stored
from revgrad.dataless import standing_for

from .allocator import OutOfReach, replay
from .anatomy import aligned, anatomy
from .cuda_ways import ways_of_cuda
from .events import Event, Kind, Timeline
from .measure import gradient_hooks
from .shadow import Recorder, Shadows
from .trial import trial_run

_DTYPES = (None, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class MemoryEstimate:
    """What one training step would take, in bytes.

    `allocated` is the sum of `parameters`, `gradients`, `optimizer_state`, `kept_for_backward`,
    `workspace` and `other`, each as it is at the moment of the peak.

    Attributes:
        allocated: the peak of what tensors hold on the device.
        reserved: what PyTorch's CUDA allocator has by then taken from the device to hold it: blocks
            rounded up, and pieces between them that nothing fits into. On a card with less the
            step may still go through, see `fits`. None for device "cpu".
        parameters: the parameters.
        gradients: what is the `.grad` of a parameter.
        optimizer_state: what the optimizer keeps from step to step.
        kept_for_backward: made before the backward pass and alive in it, as in `MemoryReport`.
        workspace: all else that the step allocates.
        other: inputs and buffers.
        device: "cuda" or "cpu": whose operators are followed.
        stored_by: of `kept_for_backward`, what reversible layers store, by layer.
        events: what came and went in two steps, from the model on; for `fits`.
    """

    allocated: int
    reserved: int | None
    parameters: int
    gradients: int
    optimizer_state: int
    kept_for_backward: int
    workspace: int
    other: int
    device: str
    stored_by: dict[str, int] = field(default_factory=dict)
    events: Sequence[Event] = field(default=(), repr=False, compare=False)

    def fits(self, budget: int) -> bool:
        """Whether the steps go through where CUDA's allocator can reserve `budget` bytes.

        That is less than `reserved` where the allocator, at its limit, gives back cached segments.
        """
        if self.reserved is None:
            raise ValueError("only an estimate for device 'cuda' knows what fits")
        if self.reserved <= budget:
            return True
        if self.allocated > budget:
            return False
        try:
            replay(self.events, budget)
        except OutOfReach:
            return False
        return True

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, but for the events, ready for JSON."""
        found = asdict(replace(self, events=()))
        del found["events"]
        return found

    def __str__(self) -> str:
        return aligned(
            [
                (f"peak on {self.device}, estimated", self.allocated),
                ("  parameters", self.parameters),
                ("  gradients", self.gradients),
                ("  optimizer state", self.optimizer_state),
                ("  kept for backward", self.kept_for_backward),
                *((f"    by {where}", size) for where, size in self.stored_by.items()),
                ("  workspace", self.workspace),
                ("  other (input, buffers)", self.other),
                *([] if self.reserved is None else [("reserved", self.reserved)]),
            ]
        )


def estimate(
    model: nn.Module,
    input: Tensor | Iterable[Any] | Mapping[str, Any],
    optimizer: Callable[[Iterable[Tensor]], Optimizer] | None = None,
    dtype: torch.dtype | None = None,
    device: str = "cuda",
    *,
    loss: Callable[[Any], Tensor] | None = None,
) -> MemoryEstimate:
    """Estimate the peak memory of a training step of `model`, without a GPU.

    Two steps (forward, loss, backward, optimizer) run on a copy of the model whose tensors have no
    data; the second is counted, storage by storage. It takes seconds and next to no memory,
    whatever the size; the model, its gradients and its state are not touched. The model runs
    in the mode, training or evaluation, that it is in. The output is held until the step ends, and
    gradients are set to None before each step.

    The operators are those of the CPU, except where CUDA is known to hold something else: masks of
    dropout (a byte an element), attention (its weights are never kept), the step counters
    and lists of temporaries of torch's optimizers, and normalisation and losses in float32 under
    autocast.

    Not modelled: workspaces of cuDNN and cuBLAS, which depend on the algorithm and can be as
    large as several activations; the CUDA context and its kernels, some hundred MB a process; fused
    optimizers; `GradScaler`; torch.compile; several streams; settings of the allocator.

    Args:
        model: the module; its tensors may be on any device, the meta device included.
        input: a tensor; a tuple or list of arguments, tensors among them; a dictionary of keyword
            arguments; or the shape of one tensor (a tuple of ints), of the type of the model's
            first floating-point parameter. Only shapes, strides, types and `requires_grad` count.
        optimizer: called with the parameters that require gradients: a class such as
            `torch.optim.AdamW`, or any function that gives an optimizer. None: no optimizer's
            step.
        dtype: torch.bfloat16 or torch.float16: forward and loss run under autocast to this type.
            Parameters, their gradients and the optimizer's state keep their type (float32), and
            the weights' casts are kept for the forward pass, as autocast does. None: no autocast;
            everything runs in the types of model and input. For a network wholly in half precision,
            give `model.bfloat16()` and an input of its type.
        device: "cuda", or "cpu", to compare with `measure` there: without the exceptions above,
            and `reserved` is None.
        loss: called with the model's output; gives one number. None: the sum of all floating-point
            tensors in the output.

    Returns:
        The estimate, in bytes.

    Raises:
        TypeError, ValueError: an argument is not one of the above.
        RuntimeError: the step reads numbers from a tensor (`.item()`, a condition, indexing by a
            mask), so that its memory depends on data.
    """
    _check(model, optimizer, dtype, device, loss)
    shadows = Shadows()
    plan = _Step(_copied(shadows, model), *_arguments(shadows, model, input), loss, dtype)
    if optimizer is not None:
        plan.optimizer = _made(optimizer, plan.parameters, device)
    names: list[str] = []
    recorder = Recorder(shadows, on_cuda=device == "cuda")

    def stored(where: str, tensors: tuple[Tensor, ...]) -> None:
        names.append(where)
        for tensor in tensors:
            recorder.mark(Kind.STORED, tensor, len(names) - 1)

    ways: AbstractContextManager[None] = ways_of_cuda() if device == "cuda" else nullcontext()
    with (
        ways,
        standing_for(device),
        trial_run(),
        recorder.recording(),
        listening_to_stored(stored),
    ):
        for tensor in plan.tensors():
            recorder.watch(tensor)
        with gradient_hooks(plan.parameters, lambda p: recorder.mark(Kind.GRADIENT, p.grad)):
            plan.run()
            cut = len(recorder.events)
            plan.run()
    return _report(plan, recorder, cut, names, device)


class _Step:
    """A training step on shadows.

    Attributes:
        parameters: Those of the model, each once.
        optimizer: None: there is none.
    """

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        loss: Callable[[Any], Tensor] | None,
        dtype: torch.dtype | None,
    ) -> None:
        self.parameters = list(model.parameters())
        self.optimizer: Optimizer | None = None
        self._model, self._args, self._kwargs = model, args, kwargs
        self._loss, self._dtype = loss or _sum, dtype

    def tensors(self) -> list[Tensor]:
        """All that is there before the first step."""
        given = tree_leaves((self._args, self._kwargs))
        inputs = [leaf for leaf in given if isinstance(leaf, Tensor)]
        return [*self.parameters, *self._model.buffers(), *inputs]

    def run(self) -> None:
        """Run the step once."""
        for tensor in self.tensors():
            tensor.grad = None
        try:
            half = torch.autocast("cpu", self._dtype, enabled=self._dtype is not None)
            with torch.enable_grad(), half:
                output = self._model(*self._args, **self._kwargs)
                loss = self._loss(output)
            loss.backward()
            if self.optimizer is not None:
                self.optimizer.step()
        except DataDependentOutputException as error:
            raise RuntimeError(
                f"the step reads numbers from a tensor ({error.func}), so its memory depends on "
                "data and can only be measured, with revgrad.memory.measure"
            ) from error

    def state(self) -> list[Tensor]:
        """The optimizer's state, without its step counters, which have data and no part in it."""
        state = {} if self.optimizer is None else dict(self.optimizer.state)
        return [leaf for leaf in tree_leaves(list(state.values())) if isinstance(leaf, FakeTensor)]


def _sum(output: Any) -> Tensor:
    found = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    floats = [leaf.sum() for leaf in found if leaf.is_floating_point() and leaf.requires_grad]
    if not floats:
        raise ValueError("the model's output has no floating-point tensor with a gradient")
    return sum(floats[1:], floats[0])


def _report(
    plan: _Step, recorder: Recorder, cut: int, names: list[str], device: str
) -> MemoryEstimate:
    before = Timeline({}, recorder.events[:cut], baseline_frees_reported=True)
    baseline = {address: block.size for address, block in before.held.items()}
    timeline = Timeline(baseline, recorder.events[cut:], baseline_frees_reported=True)

    def blocks(tensors: Iterable[Tensor]) -> set[int]:
        addresses = {recorder.address(tensor) for tensor in tensors}
        return {id(block) for address in addresses if (block := timeline.held.get(address))}

    known = {"parameters": blocks(plan.parameters), "optimizer_state": blocks(plan.state())}
    sums, stored_by = anatomy(timeline, known, names)
    del sums["scratch"]
    return MemoryEstimate(
        allocated=timeline.peak,
        reserved=replay(recorder.events).reserved if device == "cuda" else None,
        device=device,
        stored_by=stored_by,
        events=recorder.events,
        **sums,
    )


def _arguments(
    shadows: Shadows, model: nn.Module, given: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The model's arguments, without data."""
    if isinstance(given, Tensor):
        return (shadows.of_tensor(given),), {}
    if isinstance(given, Mapping):
        return (), shadows.of_tree(dict(given))
    accepted = (
        "input must be a tensor, a tuple of arguments, a dictionary of keyword arguments or a shape"
    )
    if not isinstance(given, tuple | list):
        raise TypeError(f"{accepted}, not {type(given).__name__}")
    if any(isinstance(leaf, Tensor) for leaf in tree_leaves(given)):
        return tuple(shadows.of_tree(list(given))), {}
    if not given or not all(type(size) is int for size in given):
        raise TypeError(f"{accepted}, not {given!r}")
    if min(given) < 0:
        raise ValueError(f"a shape has no negative sizes, as in {tuple(given)}")
    dtypes = (p.dtype for p in model.parameters() if p.is_floating_point())
    shape = torch.empty(tuple(given), dtype=next(dtypes, torch.float32), device="meta")
    return (shadows.of_tensor(shape),), {}


def _copied(shadows: Shadows, model: nn.Module) -> nn.Module:
    try:
        return shadows.of_module(model)
    except (TypeError, copy.Error) as error:
        raise TypeError(f"the model can't be copied: {error}") from error


def _made(
    optimizer: Callable[[Iterable[Tensor]], Optimizer],
    parameters: Iterable[Tensor],
    device: str,
) -> Optimizer:
    made = optimizer([p for p in parameters if p.requires_grad])
    if not isinstance(made, Optimizer):
        raise TypeError(f"optimizer must give a torch.optim.Optimizer, not {type(made).__name__}")
    for group in made.param_groups:
        # What torch's optimizers choose by themselves for parameters on CUDA.
        if device == "cuda" and group.get("foreach", False) is None and not group.get("fused"):
            group["foreach"] = True
    return made


def _check(model: Any, optimizer: Any, dtype: Any, device: Any, loss: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, not {type(model).__name__}")
    if hasattr(model, "_orig_mod"):
        raise ValueError("compiled graphs can't be estimated; give the model before torch.compile")
    for name, parameter in (*model.named_parameters(), *model.named_buffers()):
        if isinstance(parameter, UninitializedBuffer | UninitializedParameter):
            raise ValueError(f"'{name}' has no shape yet; run the lazy modules once before")
    for name, function in {"optimizer": optimizer, "loss": loss}.items():
        if isinstance(function, Optimizer) or not (function is None or callable(function)):
            raise TypeError(
                f"{name} must be a function or None, not {type(function).__name__}"
                + ("; give its class" if isinstance(function, Optimizer) else "")
            )
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be None, torch.bfloat16 or torch.float16, not {dtype!r}")
    if device not in ("cuda", "cpu"):
        raise ValueError(f"device must be 'cuda' or 'cpu', not {device!r}")
