"""Repeat the evaluation of a module so that it gives the same result a second time.

The result of a sub-network depends on more than its arguments and parameters: on random numbers,
on autocast, on train or eval mode and on its buffers. An `Evaluation` remembers these from the
forward pass and puts them back around the repetition, which leaves the present ones untouched.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize

from revgrad.errors import ReversibleError

Modules = list[tuple[str, nn.Module]]
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

    __slots__ = ("cpu", "devices", "python")

    def __init__(self, devices: Iterable[torch.device]) -> None:
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
        drawn = self.cpu is not None or self.python is not None or self.devices
        return self if drawn else None

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

    def __init__(self, modules: Modules) -> None:
        self.copies: dict[str, Tensor] = {}
        self.references: dict[str, tuple[Tensor, int, Tensor | None]] = {}
        for path, owner in modules:
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
                    self.copies[name] = copy
                else:
                    self.references[name] = (buffer, version(buffer), copy)

    def settle(self, module: nn.Module) -> None:
        """Drop the copies that the evaluation turned out not to need."""
        for name, (buffer, before, copy) in list(self.references.items()):
            assert copy is not None
            if module.get_buffer(name) is buffer and version(buffer) == before:
                self.references[name] = (buffer, before, None)
            else:
                del self.references[name]
                self.copies[name] = copy

    def values(self) -> dict[str, Tensor]:
        """Fresh tensors with the values from before the evaluation, by name."""
        for name, (buffer, before, _) in self.references.items():
            if version(buffer) != before:
                raise ReversibleError(
                    f"buffer '{name}' was changed between the forward and the backward pass, so "
                    "the sub-network can't be evaluated again as it was; change it after "
                    "backward, or replace it by a new tensor instead of writing into it"
                )
        kept = {name: buffer for name, (buffer, _, _) in self.references.items()}
        return {name: copy.clone() for name, copy in self.copies.items()} | kept


def version(tensor: Tensor) -> int:
    """The count of in-place changes of a tensor; 0 for inference tensors, which have none."""
    return 0 if tensor.is_inference() else tensor._version


class Evaluation:
    """One evaluation of a module in the forward pass, and what it takes to repeat it.

    Args:
        module: The module that is evaluated.
        devices: Devices whose random generators it may draw from, besides the CPU's.
        modules: Its `named_modules()`, if known.
    """

    __slots__ = ("autocast", "buffers", "module", "modules", "random", "training")

    def __init__(
        self, module: nn.Module, devices: tuple[torch.device, ...], modules: Modules | None = None
    ) -> None:
        self.module = module
        self.modules = modules or list(module.named_modules())
        self.autocast = Autocast(devices)
        self.training = [m.training for _, m in self.modules]
        self.buffers: Buffers | None = Buffers(self.modules)
        self.random: RandomState | None = RandomState(devices)

    def first(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Evaluate `call` (the module or a method of it) for the first time, and remember."""
        guard: AbstractContextManager[None] = nullcontext()
        if self.autocast.enabled:
            guard = self.autocast.restored()
        with guard, _without_shortcuts(self.modules), _recorded_if_recurrent(self.modules):
            result = call(*args, **kwargs)
        assert self.random is not None and self.buffers is not None
        self.random = self.random.drawn_until(RandomState(self.random.devices))
        self.buffers.settle(self.module)
        if not self.buffers.copies and not self.buffers.references:
            self.buffers = None
        return result

    def again(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Evaluate `call` as it was evaluated the first time."""
        with ExitStack() as stack:
            stack.enter_context(recomputing())
            stack.enter_context(_without_shortcuts(self.modules))
            if not self.autocast.is_off():
                stack.enter_context(self.autocast.restored())
            if self.training != [m.training for _, m in self.modules]:
                stack.enter_context(_training_modes(self.modules, self.training))
            if self.random is not None:
                stack.enter_context(self.random.replayed())
            if self.buffers is None:
                return call(*args, **kwargs)
            return call_with_tensors(self.module, self.buffers.values(), call, *args, **kwargs)


@contextmanager
def _training_modes(modules: Modules, modes: list[bool]) -> Iterator[None]:
    present = [(m, m.training) for _, m in modules]
    for (m, _), mode in zip(present, modes, strict=True):
        m.training = mode
    try:
        yield
    finally:
        for m, mode in present:
            m.training = mode


@contextmanager
def _without_shortcuts(modules: Modules) -> Iterator[None]:
    """Switch off what makes a result depend on whether gradients are recorded.

    The first evaluation records none and the second does. Multi-head attention has a fast path
    without gradients that treats padding otherwise; the cache of parametrisations would hand
    weights without gradient from the first to the second.
    """
    cached = parametrize._cache_enabled
    fast = torch.backends.mha.get_fastpath_enabled() and any(
        isinstance(m, nn.MultiheadAttention) for _, m in modules
    )
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


@contextmanager
def _recorded_if_recurrent(modules: Modules) -> Iterator[None]:
    """Record gradients, in vain, where an LSTM would take another way without: its bits differ."""
    recurrent = any(isinstance(m, nn.LSTM) for _, m in modules)
    with torch.set_grad_enabled(recurrent or torch.is_grad_enabled()):
        yield


_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()


def lock_of(module: nn.Module) -> threading.RLock:
    """The lock to hold while a module is evaluated or has its parameters replaced.

    A second thread that uses the same module would otherwise meet the replacements.
    """
    return _locks.setdefault(module, threading.RLock())


class _Stage(nn.Module):
    """Lets `functional_call` run any function while the tensors of a module are replaced."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)


def call_with_tensors(
    module: nn.Module,
    tensors: dict[str, Tensor],
    call: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Run `call` while parameters and buffers of `module` are replaced by `tensors`.

    Args:
        module: The module whose tensors are replaced.
        tensors: Replacements by qualified name. Tied parameters are named at each place.
        call: The function to run; it finds the replacements as attributes of `module`.
        *args: Passed to `call`.
        **kwargs: Passed to `call`.
    """
    if not tensors:
        return call(*args, **kwargs)
    named = {f"module.{name}": tensor for name, tensor in tensors.items()}
    return functional_call(_Stage(module), named, (call, *args), kwargs, tie_weights=False)
