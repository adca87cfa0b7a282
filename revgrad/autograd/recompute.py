"""Repeat the evaluation of a module so that it gives the same result a second time.

The result of a sub-network depends on more than its arguments and parameters: on random numbers,
on autocast, on train or eval mode and on its buffers. An `Evaluation` remembers these from the
forward pass and puts them back around the repetition, which leaves the present ones untouched.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize

from revgrad.autograd.inventory import Inventory
from revgrad.autograd.tail import Cut
from revgrad.errors import ReversibleError

# A tensor that a module is to find among its parameters or buffers: the dictionary and the key.
Replacement = tuple[dict[str, Tensor | None], str, Tensor]
_local = threading.local()

# A buffer of at most this many elements (statistics, counters, power iteration vectors) is kept
# as a copy. A larger one is kept by reference unless the evaluation itself changed it.
SMALL_BUFFER = 4096


def is_recomputing() -> bool:
    """Whether the code that asks runs in the second evaluation of a sub-network.

    A memory-saving sequence evaluates each sub-network once in the forward and once in the
    backward pass. A hook or a module that counts, logs or stores can ask which one it is in.
    """
    return getattr(_local, "depth", 0) > 0


@contextmanager
def recomputing() -> Iterator[None]:
    """Mark the code inside as a recomputation, see `is_recomputing`."""
    _local.depth = getattr(_local, "depth", 0) + 1
    try:
        yield
    finally:
        _local.depth -= 1


def accelerators(tensors: Iterable[Tensor]) -> tuple[torch.device, ...]:
    """The devices of `tensors` that have a random generator of their own besides the CPU's."""
    return tuple(dict.fromkeys(t.device for t in tensors if t.device.type not in ("cpu", "meta")))


class RandomState:
    """The state of every generator that a sub-network may draw from.

    These are torch's default generators of the CPU and of the given devices, and Python's
    `random`. NumPy's global generator and generators that a module made itself are not among
    them.
    """

    __slots__ = ("after", "cpu", "devices", "python")

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self.after: int | None = None
        self.cpu: Tensor | None = torch.get_rng_state()
        self.python: Any = random.getstate()
        self.devices = {d: torch.get_device_module(d.type).get_rng_state(d) for d in devices}

    def drawn_until(self, now: RandomState) -> RandomState | None:
        """This state without the generators that drew nothing since; None if none did."""
        assert self.cpu is not None and now.cpu is not None
        if torch.equal(self.cpu, now.cpu):
            self.cpu = None
        if self.python == now.python:
            self.python = None
        same = [d for d, state in self.devices.items() if torch.equal(state, now.devices[d])]
        for d in same:
            del self.devices[d]
        if self.cpu is None and self.python is None and not self.devices:
            return None
        self.after = self.digest(now)
        return self

    def digest(self, now: RandomState) -> int:
        """A number for the states in `now` of the generators that are in this state."""
        tensors = [now.cpu] * (self.cpu is not None) + [now.devices[d] for d in self.devices]
        numbers = (bytes(t.cpu().numpy()) for t in tensors if t is not None)
        return hash((*numbers, now.python if self.python is not None else None))

    def restore(self) -> None:
        """Make the generators continue from here."""
        if self.cpu is not None:
            torch.set_rng_state(self.cpu)
        if self.python is not None:
            random.setstate(self.python)
        for device, state in self.devices.items():
            torch.get_device_module(device.type).set_rng_state(state, device)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Draw the same numbers again inside, and continue outside as if nothing was drawn."""
        present = RandomState(self.devices)
        self.restore()
        try:
            yield
            if self.after not in (None, self.digest(RandomState(self.devices))):
                raise ReversibleError(
                    "the repetition of a sub-network drew other random numbers than the forward "
                    "pass, or more or fewer. If it is compiled: did it run uncompiled once "
                    "(torch._dynamo.config.recompile_limit)? If it asks is_recomputing() or "
                    "torch.is_grad_enabled(), it must draw alike either way"
                )
        finally:
            present.restore()


class Autocast:
    """The autocast state of the CPU and of the given devices."""

    __slots__ = ("states",)

    def __init__(self, devices: Iterable[torch.device]) -> None:
        types = dict.fromkeys(["cpu", *(d.type for d in devices)])
        self.states = [
            (t, torch.is_autocast_enabled(t), torch.get_autocast_dtype(t)) for t in types
        ]

    @property
    def enabled(self) -> bool:
        """Whether autocast is on for any of the devices."""
        return any(enabled for _, enabled, _ in self.states)

    def is_off(self) -> bool:
        """Whether autocast was and is off for all of the devices, so nothing is to be restored."""
        return not any(enabled or torch.is_autocast_enabled(t) for t, enabled, _ in self.states)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Run the code inside under this state.

        Without autocast's cache: a weight that was cast without gradient in the forward pass
        would be found there by a later use that needs the gradient.
        """
        with ExitStack() as stack:
            for kind, enabled, dtype in self.states:
                if enabled or torch.is_autocast_enabled(kind):
                    stack.enter_context(
                        torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False)
                    )
            yield


class Buffers:
    """The values that a module's buffers had before an evaluation.

    Small buffers and those of normalisation layers (whose kernels update the running statistics
    without a trace in the version counter) are copied. Of the others a copy stays only where the
    evaluation changed them; the rest are referenced, and a change before the repetition is found
    by their version.
    """

    __slots__ = ("copies", "references")

    def __init__(self, inventory: Inventory) -> None:
        self.copies: list[Replacement] = []
        self.references: list[tuple[str, Replacement, int, Tensor]] = []
        for path, owner in inventory.named:
            for key, buffer in owner._buffers.items():
                if buffer is None:
                    continue
                name = f"{path}.{key}" if path else key
                if buffer.requires_grad:
                    raise ReversibleError(
                        f"buffer '{name}' of a sub-network requires a gradient, which would be "
                        "lost; register it as a parameter"
                    )
                copy = buffer.detach().clone()
                if buffer.numel() <= SMALL_BUFFER or isinstance(owner, _NormBase):
                    self.copies.append((owner._buffers, key, copy))
                else:
                    known = owner._buffers, key, buffer
                    self.references.append((name, known, version(buffer), copy))

    def settle(self) -> None:
        """Drop the copies that the evaluation turned out not to need."""
        references, self.references = self.references, []
        for name, (buffers, key, buffer), before, copy in references:
            if buffers.get(key) is buffer and version(buffer) == before:
                self.references.append((name, (buffers, key, buffer), before, buffer))
            else:
                self.copies.append((buffers, key, copy))

    def values(self) -> list[Replacement]:
        """Fresh tensors with the values from before the evaluation."""
        for name, (_, _, buffer), before, _ in self.references:
            if version(buffer) != before:
                raise ReversibleError(
                    f"buffer '{name}' was changed between the forward and the backward pass, so "
                    "the sub-network can't be evaluated again as it was; change it after "
                    "backward, or replace it by a new tensor instead of writing into it"
                )
        fresh = [(buffers, key, copy.clone()) for buffers, key, copy in self.copies]
        return fresh + [known for _, known, _, _ in self.references]


def version(tensor: Tensor) -> int:
    """The count of in-place changes of a tensor; 0 for inference tensors, which have none.

    Traced code has none either; `revgrad.autograd.scrutiny` finds the changes there.
    """
    if torch.compiler.is_dynamo_compiling():
        return 0
    return 0 if tensor.is_inference() else tensor._version


class Evaluation:
    """One evaluation of a module in the forward pass, and what it takes to repeat it.

    Args:
        module: The module that is evaluated.
        devices: Devices whose random generators it may draw from, besides the CPU's.
        inventory: What it consists of, if known.

    Attributes:
        cut: The module cut before its tail, if its value was added to a stream in one pass.
    """

    __slots__ = (
        "autocast", "buffers", "cut", "devices", "inventory", "module", "random", "training",
    )  # fmt: skip

    def __init__(
        self,
        module: nn.Module,
        devices: tuple[torch.device, ...],
        inventory: Inventory | None = None,
    ) -> None:
        self.module = module
        self.devices = devices
        self.inventory = inventory or Inventory(module)
        self.autocast = Autocast(devices)
        self.training = self.inventory.training()
        self.buffers: Buffers | None = None
        self.random: RandomState | None = None
        self.cut: Cut | None = None

    def first(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Evaluate `call` (the module or a method of it) for the first time, and remember."""
        inventory = self.inventory
        buffers = Buffers(inventory)
        before = RandomState(self.devices) if inventory.may_draw else None
        with ExitStack() as stack:
            if self.autocast.enabled:
                stack.enter_context(self.autocast.restored())
            if inventory.has_attention or parametrize._cache_enabled:
                stack.enter_context(_without_shortcuts(inventory))
            if inventory.has_lstm:
                # Recorded in vain: without gradients it takes another way, and its bits differ.
                stack.enter_context(torch.enable_grad())
            result = call(*args, **kwargs)
        if before is not None:
            self.random = before.drawn_until(RandomState(self.devices))
        buffers.settle()
        if buffers.copies or buffers.references:
            self.buffers = buffers
        return result

    def again(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Evaluate `call` as it was evaluated the first time."""
        with ExitStack() as stack:
            stack.enter_context(recomputing())
            if self.inventory.has_attention or parametrize._cache_enabled:
                stack.enter_context(_without_shortcuts(self.inventory))
            if not self.autocast.is_off():
                stack.enter_context(self.autocast.restored())
            if self.training != self.inventory.training():
                stack.enter_context(_training_modes(self.inventory, self.training))
            if self.random is not None:
                stack.enter_context(self.random.replayed())
            if self.buffers is None:
                return call(*args, **kwargs)
            return call_with_tensors(self.buffers.values(), call, *args, **kwargs)


@contextmanager
def _training_modes(inventory: Inventory, modes: list[bool]) -> Iterator[None]:
    present = inventory.training()
    inventory.set_training(modes)
    try:
        yield
    finally:
        inventory.set_training(present)


@contextmanager
def _without_shortcuts(inventory: Inventory) -> Iterator[None]:
    """Switch off what makes a result depend on whether gradients are recorded.

    The first evaluation records none and the second does. Multi-head attention has a fast path
    without gradients that treats padding otherwise; the cache of parametrisations would hand
    weights without gradient from the first to the second.
    """
    cached = parametrize._cache_enabled
    fast = inventory.has_attention and torch.backends.mha.get_fastpath_enabled()
    if cached:
        parametrize._cache_enabled = 0
    if fast:
        torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        if cached:
            parametrize._cache_enabled = cached
        if fast:
            torch.backends.mha.set_fastpath_enabled(True)


_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()


def lock_of(module: nn.Module) -> threading.RLock:
    """The lock to hold while a module is evaluated or has its parameters replaced.

    A second thread that uses the same module would otherwise meet the replacements.
    """
    return _locks.setdefault(module, threading.RLock())


def call_with_tensors(
    replacements: Iterable[Replacement], call: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """Run `call` while modules find other tensors in the place of parameters and buffers.

    As `torch.func.functional_call`, for places that are known.

    Args:
        replacements: The places and the tensors. Tied parameters are named at each place.
        call: The function to run; it finds the replacements as attributes of the modules.
        *args: Passed to `call`.
        **kwargs: Passed to `call`.
    """
    before = []
    try:
        for tensors, key, tensor in replacements:
            before.append((tensors, key, tensors[key]))
            tensors[key] = tensor
        return call(*args, **kwargs)
    finally:
        for tensors, key, previous in before:
            tensors[key] = previous
