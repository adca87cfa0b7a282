"""Where an operator goes another way on CUDA than on the CPU, in a step without data.

Shadows run through the CPU's operators. On CUDA dropout keeps a mask of one byte an element instead
of a float; attention with dropout or a mask does not keep its weights; and autocast computes
normalisations and losses in float32. Sources: aten/src/ATen/native/Dropout.cpp,
native/transformers/cuda/sdp_utils.cpp, autocast_mode.h (torch 2.13).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_map

# Of the functions that autocast runs in float32 on CUDA but not on the CPU, the common ones.
_IN_FLOAT32 = (
    "layer_norm", "group_norm", "softmax", "log_softmax", "softmin", "softplus", "normalize",
    "cosine_similarity", "cross_entropy", "nll_loss", "mse_loss", "l1_loss", "smooth_l1_loss",
    "kl_div", "huber_loss",
)  # fmt: skip


def _dropout(
    _: Callable[..., Tensor],
    x: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> Tensor:
    return torch.native_dropout(x, p, True)[0] if training and p > 0 else x


def _attention(original: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    if len(args) > 4:
        args = (*args[:4], 0.0, *args[5:])
    else:
        kwargs["dropout_p"] = 0.0
    return original(*args, **kwargs)


def _in_float32(original: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    if not torch.is_autocast_enabled("cpu"):
        return original(*args, **kwargs)
    args, kwargs = tree_map(_widened, (args, kwargs))
    with torch.autocast("cpu", enabled=False):
        return original(*args, **kwargs)


def _widened(leaf: Any) -> Any:
    half = isinstance(leaf, Tensor) and leaf.dtype in (torch.bfloat16, torch.float16)
    return leaf.float() if half else leaf


_WAYS: dict[str, Callable[..., Tensor]] = {
    "dropout": _dropout,
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(_IN_FLOAT32, _in_float32),
}


@contextmanager
def ways_of_cuda() -> Iterator[None]:
    """Within this context these functions of `torch.nn.functional` treat shadows as CUDA would.

    Other tensors, such as those of another thread, they treat as ever.
    """
    originals = {name: getattr(F, name) for name in _WAYS}
    for name, way in _WAYS.items():
        setattr(F, name, _for_shadows(originals[name], way))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(F, name, original)


def _for_shadows(original: Callable[..., Tensor], way: Callable[..., Tensor]) -> Callable[..., Any]:
    @functools.wraps(original)
    def function(*args: Any, **kwargs: Any) -> Any:
        first = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(first, FakeTensor):
            return way(original, *args, **kwargs)
        return original(*args, **kwargs)

    return function
