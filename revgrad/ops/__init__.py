"""Operators with kernels of their own, each beside a reference in plain PyTorch."""

from revgrad.ops.orthogonal import (
    orthogonal_down,
    orthogonal_down_reference,
    orthogonal_up,
    orthogonal_up_reference,
)

__all__ = [
    "orthogonal_down",
    "orthogonal_down_reference",
    "orthogonal_up",
    "orthogonal_up_reference",
]
