"""Find and load the compiled kernels, once, at their first use."""

from __future__ import annotations

import functools
import os
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad

NAMESPACE = "revgrad"
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps revgrad"

_ShapeRule = Callable[..., Any]
_Function = TypeVar("_Function", bound=Callable[..., object])
_shape_rules: dict[str, _ShapeRule] = {}
_PLAIN = (Tensor, torch.nn.Parameter, FakeTensor, FunctionalTensor)


class KernelWarning(UserWarning):
    """The kernels cannot be used, and plain PyTorch runs in their place."""


@dataclass(frozen=True)
class State:
    """What came of looking for the kernels.

    Attributes:
        problem: Why they cannot be used, or None.
        wanted: Whether the user expects them, so that a problem deserves a warning.
    """

    problem: str | None = None
    wanted: bool = True


_state: State | None = None
_warned = False
_lock = threading.Lock()


def constant_when_traced(function: _Function) -> _Function:
    """Let the compiler call a function when it traces, and take the result for a constant.

    `torch.compiler.assume_constant_result` says the same, but imports the compiler, which takes as
    long as all of torch.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def shape_rule(name: str) -> Callable[[_ShapeRule], _ShapeRule]:
    """Declare what an operator returns for tensors without data (meta and fake tensors)."""

    def declare(rule: _ShapeRule) -> _ShapeRule:
        _shape_rules[name] = rule
        return rule

    return declare


def library_path() -> Path:
    """Name the library's file; REVGRAD_LIBRARY names another, such as one with sanitizers."""
    default = Path(__file__).resolve().parents[1] / "_C.so"
    return Path(os.environ.get("REVGRAD_LIBRARY", default))


def load() -> State:
    """Load the library unless that was tried before, and say how it went."""
    global _state
    with _lock:
        if _state is None:
            _state = _try_to_load()
        return _state


def _try_to_load() -> State:
    if os.environ.get("REVGRAD_DISABLE_KERNELS", "0") not in ("", "0"):
        return State("switched off by REVGRAD_DISABLE_KERNELS", wanted=False)
    path = library_path()
    if not path.exists():
        return State(
            f"revgrad was installed without them, for want of torch, g++ or ninja; with all three "
            f"there: {REBUILD}, or in a checkout: make kernels"
        )
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        return State(
            f"{path.name} does not load beside torch {torch.__version__}: {error}; {REBUILD}"
        )
    for name, rule in _shape_rules.items():
        torch.library.register_fake(f"{NAMESPACE}::{name}")(rule)
    return State()


@constant_when_traced
def available() -> bool:
    """Whether the kernels run; the first time they are missed, warn and name the cure."""
    global _warned
    state = load()
    if state.problem and state.wanted and not _warned:
        _warned = True
        warnings.warn(
            f"revgrad's kernels cannot be used, so plain PyTorch runs, slower: {state.problem}",
            KernelWarning,
            stacklevel=2,
        )
    return state.problem is None


@constant_when_traced
def switched_off() -> bool:
    """Whether the user asked for plain PyTorch."""
    return not load().wanted


def raw() -> Any:
    """The namespace of raw operators; `available()` must hold."""
    return getattr(torch.ops, NAMESPACE)


@constant_when_traced
def _has_device(device: str) -> bool:
    return _is_compiled_for(device)


@functools.cache  # looked up at every call of an operator otherwise
def _is_compiled_for(device: str) -> bool:
    key = {"cpu": "CPU", "cuda": "CUDA", "meta": "Meta"}.get(device)
    if key is None:
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::orthogonal_down", key)


def is_plain(t: Tensor, dtypes: tuple[torch.dtype, ...] = DTYPES) -> bool:
    """Whether a kernel takes the tensor's type and layout, and it is no unknown subclass."""
    # Code that is traced may not ask for the layout in a backward pass.
    strided = torch.compiler.is_dynamo_compiling() or t.layout == torch.strided
    return t.dtype in dtypes and strided and type(t) in _PLAIN


@constant_when_traced
def in_transform() -> bool:
    """Whether a transform of torch.func is at work."""
    return torch._C._functorch.maybe_current_level() is not None


def in_forward_mode() -> bool:
    """Whether tangents are carried along, which only the reference does.

    torch.compile refuses a Function with a forward-mode rule, so ours have none.
    """
    return forward_ad._current_level >= 0


def needs_function(*tensors: Tensor | None) -> bool:
    """Whether a derivative, a transform or a compiler may want the operator's `Function`.

    It costs several times what the call of a raw operator does.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors))
    )


def fit(*tensors: Tensor) -> bool:
    """Whether a kernel takes these tensors: their type, layout and device, and no subclass."""
    first = tensors[0]
    return (
        all(t.device == first.device and is_plain(t) for t in tensors)
        and not in_forward_mode()
        and available()
        and _has_device(first.device.type)
    )


def describe() -> str:
    """Say in one line which kernels run, for `revgrad info`."""
    state = load()
    if state.problem:
        return f"none, plain PyTorch runs: {state.problem}"
    devices = [device for device in ("cpu", "cuda") if _has_device(device)]
    return f"compiled for {' and '.join(devices)}"
