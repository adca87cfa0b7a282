"""Reversible networks for PyTorch: activations are computed back instead of stored."""

from typing import Any

from revgrad import memory as memory
from revgrad import nn as nn
from revgrad import optim as optim
from revgrad.autograd import check_reconstruction, is_recomputing
from revgrad.errors import ReversibleError
from revgrad.fixed_point import FixedPoint
from revgrad.nn import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    ChannelMixing,
    HaarDownsample,
    HaarUpsample,
    Invertible1x1Conv,
    JoinSkip,
    OrthogonalDownsample,
    OrthogonalUpsample,
    PixelShuffleDownsample,
    PixelShuffleUpsample,
    ReversibleLayer,
    ReversibleSequence,
    SplitSkip,
    Tap,
    convert,
    suggest_fraction_bits,
)
from revgrad.version import __version__

# Not `nn`, `optim` and `memory`: a star import must not hide torch.nn.
__all__ = [
    "ActNorm",
    "AdditiveCoupling",
    "AffineCoupling",
    "ChannelMixing",
    "FixedPoint",
    "HaarDownsample",
    "HaarUpsample",
    "Invertible1x1Conv",
    "JoinSkip",
    "OrthogonalDownsample",
    "OrthogonalUpsample",
    "PixelShuffleDownsample",
    "PixelShuffleUpsample",
    "ReversibleError",
    "ReversibleLayer",
    "ReversibleSequence",
    "SplitSkip",
    "Tap",
    "__version__",
    "check_reconstruction",
    "convert",
    "is_recomputing",
    "suggest_fraction_bits",
]


def __getattr__(name: str) -> Any:
    # Loaded when it is first used: who only wraps a network need not wait for it.
    if name == "models":
        from importlib import import_module

        return import_module("revgrad.models")
    raise AttributeError(f"module 'revgrad' has no attribute {name!r}")
