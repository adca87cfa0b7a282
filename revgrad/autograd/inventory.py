"""What a sub-network consists of, and what the kinds of its modules tell of its evaluation."""

from __future__ import annotations

from typing import TypeVar

import torch.nn.modules.module as torch_module
from torch import nn

# Modules of these very classes draw no random numbers, so that no generator has to be looked at
# around them, which takes as long as a small convolution. Of any other nothing is known.
_KNOWN: set[type] = {
    getattr(nn, name)
    for name in (
        *(f"{kind}{d}d" for d in (1, 2, 3) for kind in ("Conv", "ConvTranspose", "BatchNorm")),
        *(f"{kind}{d}d" for d in (1, 2, 3) for kind in ("InstanceNorm", "AvgPool", "MaxPool")),
        *("GroupNorm", "LayerNorm", "RMSNorm", "SyncBatchNorm", "Linear", "Identity"),
        *("ReLU", "LeakyReLU", "PReLU", "ELU", "GELU", "SiLU", "Mish", "Sigmoid", "Tanh"),
        *("Softplus", "Sequential", "ModuleList", "ModuleDict", "Flatten", "Unflatten"),
    )
}
_MISREADING = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_Class = TypeVar("_Class", bound=type)


def known(cls: _Class) -> _Class:
    """Say of a module class that it draws no random numbers and reads gradients as they are."""
    _KNOWN.add(cls)
    return cls


def may_misread_gradients(module: nn.Module) -> bool:
    """Whether a gradient in channels-last format might be taken for a contiguous one.

    PyTorch's instance norm does that for a batch of one (2.13, CPU), and gives another gradient.
    """
    return any(
        type(m) not in _KNOWN or isinstance(m, _MISREADING) or has_hooks(m)
        for m in module.modules()
    )


class Inventory:
    """The modules that a module consists of.

    Args:
        module: The module, itself the first of them.

    Attributes:
        named: Its `named_modules()`.
        may_draw: Whether an evaluation may draw random numbers.
        has_attention: Whether there is a multi-head attention among them.
        has_lstm: Whether there is an LSTM among them.
    """

    __slots__ = ("has_attention", "has_lstm", "may_draw", "named")

    def __init__(self, module: nn.Module) -> None:
        self.named = list(module.named_modules())
        unknown = [m for _, m in self.named if type(m) not in _KNOWN]
        self.may_draw = bool(unknown) or any(has_hooks(m) for _, m in self.named)
        self.has_attention = any(isinstance(m, nn.MultiheadAttention) for m in unknown)
        self.has_lstm = any(isinstance(m, nn.LSTM) for m in unknown)

    def training(self) -> list[bool]:
        """Which of the modules are in training mode now."""
        return [m.training for _, m in self.named]

    def set_training(self, modes: list[bool]) -> None:
        """Put each module into training or evaluation mode."""
        for (_, m), mode in zip(self.named, modes, strict=True):
            m.training = mode


def has_hooks(module: nn.Module) -> bool:
    """Whether code of somebody else runs with the module, forward or backward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or type(module).__call__ is not nn.Module.__call__
        or torch_module._has_any_global_hook()
    )
