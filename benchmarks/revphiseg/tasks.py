"""The measurements themselves, each of which has a process to itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from revgrad.benchmarks.revphiseg.networks import TrainingStep
from revgrad.benchmarks.sequence.settings import Settings
from revgrad.benchmarks.sequence.tasks import in_turns, peak_resident
from revgrad.memory import measure


def memory(settings: Settings, variant: str, classes: int, quick: bool) -> dict[str, Any]:
    """Memory, saved activations, operations and parameters of a step."""
    step = TrainingStep(variant, settings, classes, quick)
    # Of one image: Adam makes its state, and a batch takes as many operations for each image.
    flops = settings.batch * operations(lambda: step(1))
    report = measure(step, step.module, device=settings.device, warmup=0)
    return {
        "memory": report.as_dict(),
        "resident": peak_resident(),
        "saved": saved_activations(step),
        "flops": flops,
        "parameters": sum(p.numel() for p in step.module.parameters()),
    }


def timing(
    settings: Settings, variants: Sequence[str], classes: int, quick: bool, repeats: int
) -> Iterator[dict[str, Any]]:
    """Seconds of a step for each variant, in rounds in which all take turns in random order."""
    steps = {name: TrainingStep(name, settings, classes, quick) for name in variants}
    yield from in_turns(steps, repeats, settings.device)


def saved_activations(step: TrainingStep) -> int:
    """Bytes that autograd saves in a forward pass, parameters aside; each storage once."""
    own = {p.untyped_storage().data_ptr() for p in step.module.parameters()}
    sizes: dict[int, int] = {}
    held = []  # so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            held.append(storage)
        # Not the tensor itself: one that is its node's result would keep the graph alive.
        return tensor.detach()

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        step.loss()
    return sum(sizes.values())


def operations(step: Callable[[], None]) -> int:
    """Floating-point operations of a step, repetitions included, as PyTorch counts them.

    By the formulas of `torch.utils.flop_counter`, whose own counter can't follow nested backward
    passes.
    """
    with _Operations() as counter:
        step()
    return counter.total


class _Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result
