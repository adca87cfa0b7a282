"""Keep the compiler's hands off the tape.

`torch.compile` looks at every Python frame that runs under it. Traced piece by piece, the tape's
own frames would be slow at best; and code that asks whether it is being traced would be told yes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch._C._dynamo.eval_frame import (
    _FrameAction,
    _FrameExecStrategy,
    set_code_exec_strategy,
)

_Function = TypeVar("_Function", bound=Callable[..., object])


def outside_of_compiler(function: _Function) -> _Function:
    """Let a function that is called as such run untraced, with all that it calls.

    Other than with `torch.compiler.disable`, code that is traced may still take it in. What is
    compiled on its own inside, such as a sub-network, stays compiled.
    """
    strategy = _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP)
    set_code_exec_strategy(function.__code__, strategy)
    return function
