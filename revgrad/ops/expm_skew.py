"""Exponential of antisymmetric matrices: rotations from free parameters, with a true derivative.

exp(theta - theta^T) is orthogonal with determinant 1 for every theta, and every such matrix is
one. Derivative: for the gradient G of the result, M is the adjoint of exp's derivative at
A = theta - theta^T applied to G, which is exp's derivative at -A applied to G, and the gradient of
theta is M - M^T. See csrc/kernels/expm_skew.h for how both are computed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from revgrad.ops import expm_products, kernels

MAX_MATRIX = 64  # csrc/kernels/expm_skew.h says the same


def expm_skew(theta: Tensor) -> Tensor:
    """Return the orthogonal matrices exp(theta - theta^T).

    Args:
        theta: (..., n, n). Half-precision types are computed in float32.

    Returns:
        The same shape and type. Its backward pass keeps five more matrices of this size.

    Raises:
        ValueError: If `theta` is not a floating tensor of square matrices.
    """
    _check(theta)
    wide = theta.to(_accumulator(theta))
    if not _fits(wide):
        return expm_skew_reference(theta)
    return (
        _apply(wide.reshape(_batch(theta), *theta.shape[-2:])).reshape(theta.shape).to(theta.dtype)
    )


def expm_skew_reference(theta: Tensor) -> Tensor:
    """`expm_skew` in plain PyTorch: the tests' oracle, and what runs without kernels."""
    _check(theta)
    wide = theta.to(_accumulator(theta))
    return torch.linalg.matrix_exp(wide - wide.mT).to(theta.dtype)


def backward_reference(grad: Tensor, theta: Tensor) -> Tensor:
    """The gradient of theta in plain PyTorch, differentiable any number of times.

    The upper right of exp([[X, G], [0, X]]) is exp's derivative at X applied to G (Van Loan 1978).
    """
    a = theta - theta.mT
    zero = torch.zeros_like(a)
    block = torch.cat([torch.cat([-a, grad], -1), torch.cat([zero, -a], -1)], -2)
    m = torch.linalg.matrix_exp(block)[..., : a.shape[-1], a.shape[-1] :]
    return m - m.mT


def _check(theta: Tensor) -> None:
    if theta.dim() < 2 or theta.shape[-1] != theta.shape[-2]:
        raise ValueError(f"theta must hold square matrices, (..., n, n), got {tuple(theta.shape)}")
    if not theta.is_floating_point():
        raise ValueError(f"theta must be floating, got {theta.dtype}")


def _batch(theta: Tensor) -> int:
    """Number of matrices; -1 would be ambiguous for empty ones."""
    return math.prod(theta.shape[:-2])


def _accumulator(theta: Tensor) -> torch.dtype:
    return torch.float64 if theta.dtype == torch.float64 else torch.float32


def _fits(theta: Tensor) -> bool:
    if theta.shape[-1] <= MAX_MATRIX:
        return kernels.fit(theta)
    known = theta.device.type in ("cpu", "cuda", "meta") and kernels.is_plain(theta)
    return known and not kernels.switched_off() and not kernels.in_forward_mode()


def _apply(theta: Tensor) -> Tensor:
    # Without grad mode no gradient can be asked for, so the tape is not written.
    save = torch.is_grad_enabled() and theta.requires_grad
    save = save or torch._C._functorch.maybe_current_level() is not None
    result: Tensor = _ExpmSkew.apply(theta, save)[0]
    return result


def _forward(theta: Tensor, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    if theta.shape[-1] <= MAX_MATRIX:
        return kernels.raw().expm_skew(theta, save)
    return _forward_by_products(theta, save)


def _backward(grad: Tensor, theta: Tensor, result: Tensor, tape: Tensor, plan: Tensor) -> Tensor:
    if theta.shape[-1] <= MAX_MATRIX:
        return kernels.raw().expm_skew_backward(grad, theta, result, tape, plan)
    return _backward_by_products(grad, theta, result, tape, plan)


# Operators of their own, because the plan depends on the data, which a trace cannot follow.
@torch.library.custom_op("revgrad_products::expm_skew", mutates_args=())
def _forward_by_products(theta: Tensor, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    return expm_products.forward(theta, save)


@torch.library.custom_op("revgrad_products::expm_skew_backward", mutates_args=())
def _backward_by_products(
    grad: Tensor, theta: Tensor, result: Tensor, tape: Tensor, plan: Tensor
) -> Tensor:
    return expm_products.backward(grad, theta, result, tape, plan)


@kernels.shape_rule("expm_skew")
def _forward_shape(theta: Tensor, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    batch, n, _ = theta.shape
    tape = theta.new_empty([batch if save else 0, expm_products.TAPE, n, n])
    return (
        theta.new_empty([batch, n, n]),
        tape,
        theta.new_empty([batch, 2], dtype=torch.int32),
    )


@kernels.shape_rule("expm_skew_backward")
def _backward_shape(
    grad: Tensor, theta: Tensor, result: Tensor, tape: Tensor, plan: Tensor
) -> Tensor:
    return theta.new_empty(theta.shape)


@_forward_by_products.register_fake
def _(theta: Tensor, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    batch, n, _ = theta.shape
    tape = theta.new_empty([batch if save else 0, expm_products.TAPE, n, n])
    plan = torch.empty([batch, 2], dtype=torch.int32, device="meta" if theta.is_meta else "cpu")
    return theta.new_empty([batch, n, n]), tape, plan


_backward_by_products.register_fake(_backward_shape)


class _ExpmSkew(torch.autograd.Function):
    @staticmethod
    def forward(theta: Tensor, save: bool) -> tuple[Tensor, Tensor, Tensor]:
        return _forward(theta, save)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        result, tape, plan = output
        ctx.mark_non_differentiable(tape, plan)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[0], result, tape, plan)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, None]:
        if grad is None:
            return None, None
        return _ExpmSkewBackward.apply(grad, *ctx.saved_tensors), None

    @staticmethod
    def vmap(
        info: Any, dims: Any, theta: Tensor, save: bool
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        theta = theta.movedim(dims[0], 0)
        parts = _ExpmSkew.apply(theta.flatten(0, 1), save)
        size = (info.batch_size, -1)
        shaped = tuple(t.reshape(*size, *t.shape[1:]) if t.numel() else t for t in parts)
        return shaped, (0, 0, 0)


class _ExpmSkewBackward(torch.autograd.Function):
    """The kernels' gradient; its own derivative goes through `backward_reference`."""

    @staticmethod
    def forward(grad: Tensor, theta: Tensor, result: Tensor, tape: Tensor, plan: Tensor) -> Tensor:
        return _backward(grad, theta, result, tape, plan)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        # The result depends on theta, so theta's gradient here is the whole one.
        pull: Any = torch.func.vjp(backward_reference, *ctx.saved_tensors)[1]
        return (*pull(cotangent), None, None, None)

    @staticmethod
    def vmap(info: Any, dims: Any, *tensors: Tensor) -> tuple[Tensor, int]:
        size = info.batch_size
        joined = [
            (t.expand(size, *t.shape) if d is None else t.movedim(d, 0)).flatten(0, 1)
            for t, d in zip(tensors, dims, strict=True)
        ]
        return _ExpmSkewBackward.apply(*joined).unflatten(0, (size, -1)), 0
