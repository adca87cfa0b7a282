"""Compile one module in place, whatever its class."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

# The compiler's own is 8. Beyond it a module runs uncompiled.
RECOMPILE_LIMIT = 128


def compile_module(module: nn.Module, **options: Any) -> None:
    """Let a module run compiled when it is called; names, parameters and hooks stay as they are.

    As `torch.nn.Module.compile`, which compiles nothing of an `nn.Sequential` of torch's own
    modules (2.13): the compiler skips frames of torch's files, so it needs one that is not.

    Args:
        module: The module.
        **options: Those of `torch.compile`.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        return module._call_impl(*args, **kwargs)

    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        # All modules that are compiled here share it, and so do their variants.
        options.setdefault("recompile_limit", RECOMPILE_LIMIT)
    module._compiled_call_impl = torch.compile(call, **options)
