"""Operators with kernels of their own, each beside a reference in plain PyTorch."""

from revgrad.ops.expm_skew import expm_skew, expm_skew_reference
from revgrad.ops.norm_act import (
    norm_act,
    norm_act_backward,
    norm_act_update,
    norm_act_update_,
    norm_act_with_statistics,
)
from revgrad.ops.orthogonal import (
    orthogonal_down,
    orthogonal_down_reference,
    orthogonal_up,
    orthogonal_up_reference,
    orthogonal_weight,
)
from revgrad.ops.orthogonal_exact import orthogonal_down_exact, orthogonal_up_exact

__all__ = [
    "expm_skew",
    "expm_skew_reference",
    "norm_act",
    "norm_act_backward",
    "norm_act_update",
    "norm_act_update_",
    "norm_act_with_statistics",
    "orthogonal_down",
    "orthogonal_down_exact",
    "orthogonal_down_reference",
    "orthogonal_up",
    "orthogonal_up_exact",
    "orthogonal_up_reference",
    "orthogonal_weight",
]
