"""Normalisation and activation in one pass, with the update of a coupling's stream.

`y = act((x - mean) * rstd * weight + bias)` with the statistics of what is normalised together.
Two numbers a group are all that the backward pass needs beside the input: the activation's
derivative is found anew from them.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from revgrad.fixed_point.grid import Grid
from revgrad.ops import kernels

Norm = Literal["instance", "group", "layer", "batch"]
Activation = Literal["none", "relu", "leaky_relu", "silu", "gelu"]

NORMS = ("instance", "group", "layer", "batch")
ACTIVATIONS = ("none", "relu", "leaky_relu", "silu", "gelu")  # csrc/kernels/norm_act.h counts alike


_Vectors = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


class Settings(NamedTuple):
    """What the operators take beside tensors.

    Attributes:
        groups: Groups of channels with statistics of their own.
        over_batch: Whether statistics are those of a channel over all samples.
        eps: Added to the variance.
        activation: Place in `ACTIVATIONS`.
        slope: Of the leaky ReLU for negative numbers.
    """

    groups: int
    over_batch: bool
    eps: float
    activation: int
    slope: float


def norm_act(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    norm: Norm = "instance",
    groups: int | None = None,
    mean: Tensor | None = None,
    rstd: Tensor | None = None,
    eps: float = 1e-5,
    activation: Activation = "none",
    slope: float = 0.01,
) -> Tensor:
    """Normalise and activate: `act((x - mean) * rstd * weight + bias)`.

    Args:
        x: (N, C, ...), any number of spatial axes, none included.
        weight: (C,), or None for ones.
        bias: (C,), or None for zeros.
        norm: What is normalised together: a channel of a sample ("instance"), a group of channels
            of a sample ("group"), a whole sample ("layer"), a channel over all samples ("batch").
            `torch.nn.LayerNorm` over the last D numbers is "layer" for x as (rows, D).
        groups: How many groups, for "group" alone.
        mean: Statistics to use in place of x's own, constants to the derivative; (N, groups) or,
            for "batch", (1, C).
        rstd: 1 / sqrt(variance + eps), with `mean`.
        eps: Added to the variance.
        activation: One of `ACTIVATIONS`; "gelu" is the exact one.
        slope: Of the leaky ReLU for negative numbers.

    Returns:
        The shape and type of x, and its memory format if x is dense.

    Raises:
        ValueError: If shapes, types, devices or names do not fit together.
    """
    settings = _settings(x, norm, groups, eps, activation, slope)
    return norm_act_with_statistics(x, weight, bias, mean, rstd, settings)[0]


def norm_act_with_statistics(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    settings: Settings,
) -> tuple[Tensor, Tensor, Tensor]:
    """`norm_act`, also returning mean and rstd, float32 (float64 for float64), without gradient."""
    weight, bias, mean, rstd = _checked(x, weight, bias, mean, rstd, settings)
    if not _fit(x, weight, bias, mean, rstd):
        y, mean, rstd = reference(x, weight, bias, mean, rstd, settings)
        return y, mean.detach(), rstd.detach()
    run = _NormAct.apply if kernels.needs_function(x, weight, bias) else _NormAct.forward
    return run(_dense(x), weight, bias, mean, rstd, settings)


def norm_act_update_(
    stream: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    settings: Settings,
    *,
    sign: int = 1,
    fraction_bits: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Add `norm_act(x)` to a stream in place, or subtract it. Without autograd.

    The result has the bits of the two steps: y is rounded to x's type before it is added.

    Args:
        stream: The shape of x; x's type or a wider one, or int32 with `fraction_bits`.
        x: As for `norm_act`, like the others.
        sign: 1 adds, -1 subtracts.
        fraction_bits: Binary digits behind the point of an int32 stream (`Grid`).

    Returns:
        mean and rstd.
    """
    _check_stream(stream, x, sign, fraction_bits)
    with torch.no_grad():
        weight, bias, mean, rstd = _checked(x, weight, bias, mean, rstd, settings)
        alike = _same_layout(stream, x) and _is_dense(x)
        if alike and _fit(x, weight, bias, mean, rstd, stream):
            return kernels.raw().norm_act_update_(
                stream, x, weight, bias, mean, rstd, *settings, sign, fraction_bits or 0
            )
        y, *found = norm_act_with_statistics(x, weight, bias, mean, rstd, settings)
        update_reference_(stream, y, sign, fraction_bits)
    return found[0], found[1]


def norm_act_update(
    stream: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    settings: Settings,
    *,
    sign: int = 1,
    fraction_bits: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`norm_act_update_` in new memory, in the same one pass. Without autograd.

    Args:
        stream: Read only; as for `norm_act_update_`, like the others.

    Returns:
        The sum, with the bits of the update of a clone; mean and rstd.
    """
    _check_stream(stream, x, sign, fraction_bits)
    with torch.no_grad():
        given = _checked(x, weight, bias, mean, rstd, settings)
        alike = _same_layout(stream, x) and _is_dense(x)
        if alike and _fit(x, *given, stream):
            return kernels.raw().norm_act_update(
                stream, x, *given, *settings, sign, fraction_bits or 0
            )
        result = stream.clone()
        options: Any = {"sign": sign, "fraction_bits": fraction_bits}
        return result, *norm_act_update_(result, x, *given, settings, **options)


def norm_act_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    constant: bool,
    settings: Settings,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias.

    Args:
        dy: That of the result; x's type or a wider one.
        constant: Whether mean and rstd were given, not x's own.

    Returns:
        dx, of x's type; dweight and dbias, (C,), float32 or float64, also without weight or bias.
    """
    weight, bias = _checked(x, weight, bias, mean, rstd, settings)[:2]
    mean, rstd = (t.to(_accumulator(x)).contiguous() for t in (mean, rstd))
    if _fit(x, weight, bias, mean, rstd, dy):
        x = _dense(x)
        return _gradients(_suited(dy, x), x, mean, rstd, weight, bias, constant, settings)
    return backward_reference(dy, x, mean, rstd, weight, bias, constant, settings)


def reference(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    settings: Settings,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, mean and rstd in plain PyTorch: the tests' oracle, and what runs without kernels."""
    groups, over_batch, eps, activation, slope = settings
    wide = x.to(_accumulator(x)).unflatten(1, (groups, -1))
    axes = [0] * over_batch + list(range(2, wide.dim()))
    samples = 1 if over_batch else x.shape[0]
    flat = (samples, groups)
    tall = (*flat, *[1] * (wide.dim() - 2))
    if mean is None or rstd is None:
        if x.numel() == 0:
            mean, variance = (wide.new_zeros(flat) for _ in range(2))
        else:
            mean = wide.mean(axes)
            variance = (wide - mean.reshape(tall)).square().mean(axes).reshape(flat)
        rstd = (variance + eps).rsqrt()
    z = ((wide - mean.reshape(tall)) * rstd.reshape(tall)).flatten(1, 2)
    per_channel = (-1, *[1] * (x.dim() - 2))
    if weight is not None:
        z = z * weight.reshape(per_channel)
    if bias is not None:
        z = z + bias.reshape(per_channel)
    return _activate(z, activation, slope).to(x.dtype), mean.reshape(flat), rstd.reshape(flat)


def backward_reference(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    constant: bool,
    settings: Settings,
) -> tuple[Tensor, Tensor, Tensor]:
    """`norm_act_backward` in plain PyTorch, differentiable any number of times."""
    wide = _accumulator(x)
    w = x.new_ones(x.shape[1], dtype=wide) if weight is None else weight
    b = x.new_zeros(x.shape[1], dtype=wide) if bias is None else bias

    def forward(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        if constant:
            return reference(x, w, b, mean, rstd, settings)[0]
        return reference(x, w, b, None, None, settings)[0]

    pull: Any = torch.func.vjp(forward, x.to(wide), w, b)[1]
    dx, dw, db = pull(dy.to(wide))
    return dx.to(x.dtype), dw, db


def update_reference_(stream: Tensor, y: Tensor, sign: int, fraction_bits: int | None) -> Tensor:
    """Add or subtract y in place; on the grid if the stream is int32."""
    if fraction_bits is None:
        return stream.add_(y) if sign > 0 else stream.sub_(y)
    rounded = Grid(fraction_bits, y.dtype).round(y)
    return stream.add_(rounded) if sign > 0 else stream.sub_(rounded)


def _activate(z: Tensor, activation: int, slope: float) -> Tensor:
    match ACTIVATIONS[activation]:
        case "relu":
            return F.relu(z)
        case "leaky_relu":
            return F.leaky_relu(z, slope)
        case "silu":
            return F.silu(z)
        case "gelu":
            return F.gelu(z)
    return z


def _accumulator(x: Tensor) -> torch.dtype:
    """The type that sums are formed in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _settings(
    x: Tensor, norm: str, groups: int | None, eps: float, activation: str, slope: float
) -> Settings:
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if (norm == "group") != (groups is not None):
        raise ValueError(f"groups go with norm='group' and only with it, got {groups} for {norm!r}")
    _check_image(x)
    count = {"layer": 1, "group": groups or 0}.get(norm, x.shape[1])
    return Settings(count, norm == "batch", eps, ACTIVATIONS.index(activation), slope)


def _check_image(x: Tensor) -> None:
    if x.dim() < 2 or x.shape[1] == 0:
        raise ValueError(f"x must be (N, C, ...) with a channel at least, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"x must be floating, got {x.dtype}")


def _checked(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    settings: Settings,
) -> _Vectors:
    """Refuse what no rule covers; returns weight, bias, mean, rstd in the accumulator's type."""
    _check_image(x)
    groups, over_batch = settings[:2]
    channels = x.shape[1]
    if groups < 1 or channels % groups:
        raise ValueError(f"groups must divide the {channels} channels of x, got {groups}")
    if (mean is None) != (rstd is None):
        raise ValueError("mean and rstd go together: give both or neither")
    statistics = (1 if over_batch else x.shape[0], groups)
    return (
        _vector("weight", weight, (channels,), x),
        _vector("bias", bias, (channels,), x),
        _vector("mean", mean, statistics, x),
        _vector("rstd", rstd, statistics, x),
    )


def _vector(name: str, t: Tensor | None, shape: tuple[int, ...], x: Tensor) -> Tensor | None:
    if t is None:
        return None
    if t.shape != shape or not t.is_floating_point():
        raise ValueError(f"{name} must be floating, {shape}, got {t.dtype}, {tuple(t.shape)}")
    if t.device != x.device:
        raise ValueError(f"{name} and x must share a device, got {t.device} and {x.device}")
    return t.to(_accumulator(x)).contiguous()


def _check_stream(stream: Tensor, x: Tensor, sign: int, fraction_bits: int | None) -> None:
    if stream.shape != x.shape or stream.device != x.device:
        raise ValueError(
            f"the stream must have the shape and device of x, {tuple(x.shape)} on {x.device}, got "
            f"{tuple(stream.shape)} on {stream.device}"
        )
    if sign not in (1, -1):
        raise ValueError(f"sign must be 1 or -1, got {sign}")
    fixed = stream.dtype == torch.int32
    if fixed != (fraction_bits is not None):
        raise ValueError(
            f"fraction_bits go with an int32 stream and only with it, got {fraction_bits} for "
            f"{stream.dtype}"
        )
    if not fixed and torch.promote_types(stream.dtype, x.dtype) != stream.dtype:
        raise ValueError(f"the stream must be as wide as x, {x.dtype}, got {stream.dtype}")


def _fit(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    other: Tensor | None = None,
) -> bool:
    given = [t for t in (x, weight, bias, mean, rstd) if t is not None]
    # Derivatives by given statistics are the reference's alone.
    moving = any(t is not None and t.requires_grad for t in (mean, rstd))
    # A stream may be int32, which no kernel takes as its x.
    plain = other is None or kernels.is_plain(other) or other.dtype == torch.int32
    return not moving and plain and kernels.fit(*given)


def _channels_last(x: Tensor) -> bool:
    """Whether the channels of a pixel are neighbours in memory, and pixels are densely packed."""
    return x.dim() > 2 and x.movedim(1, -1).is_contiguous()


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or _channels_last(x)


def _dense(x: Tensor) -> Tensor:
    return x if _is_dense(x) else x.contiguous()


def _same_layout(a: Tensor, b: Tensor) -> bool:
    return a.stride() == b.stride()


def _suited(dy: Tensor, x: Tensor) -> Tensor:
    """`dy` with the strides of x, and its type or the accumulator's."""
    dtype = x.dtype if dy.dtype == x.dtype else _accumulator(x)
    # The compiler traces a backward pass with gradients of other strides than they will have.
    known = not torch.compiler.is_compiling()
    if known and dy.dtype == dtype and _same_layout(dy, x):
        return dy
    return torch.empty_like(x, dtype=dtype).copy_(dy)


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        rstd: Tensor | None,
        settings: Settings,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return kernels.raw().norm_act(x, weight, bias, mean, rstd, *settings)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, given, _, ctx.settings = inputs
        _, mean, rstd = output
        ctx.constant = given is not None
        ctx.mark_non_differentiable(mean, rstd)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, mean, rstd, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 6
        x, mean, rstd, weight, bias = ctx.saved_tensors
        dx, *own = _gradients(
            _suited(dy, x), x, mean, rstd, weight, bias, ctx.constant, ctx.settings
        )
        needed = ctx.needs_input_grad[1:3]
        dweight, dbias = (g if n else None for g, n in zip(own, needed, strict=True))
        return dx, dweight, dbias, None, None, None

    @staticmethod
    def vmap(info: Any, dims: Any, *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return torch.vmap(reference, dims)(*args), (0, 0, 0)


def _gradients(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    wanted = kernels.needs_function(dy, x, weight, bias)
    run = _NormActBackward.apply if wanted else _NormActBackward.forward
    found: tuple[Tensor, Tensor, Tensor] = run(dy, x, mean, rstd, weight, bias, *rest)
    return found


class _NormActBackward(torch.autograd.Function):
    """The kernels' gradients; their own derivative goes through `backward_reference`."""

    @staticmethod
    def forward(
        dy: Tensor,
        x: Tensor,
        mean: Tensor,
        rstd: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        constant: bool,
        settings: Settings,
    ) -> tuple[Tensor, Tensor, Tensor]:
        groups, over_batch, _, activation, slope = settings
        return kernels.raw().norm_act_backward(
            dy, x, mean, rstd, weight, bias, groups, over_batch, constant, activation, slope
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.constant, ctx.settings = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        dy, x, mean, rstd, weight, bias = ctx.saved_tensors
        given = [t for t in (weight, bias) if t is not None]

        def gradients(dy: Tensor, x: Tensor, *affine: Tensor) -> tuple[Tensor, ...]:
            # x's own statistics are found anew, so x's gradient here is the whole one.
            left = list(affine)
            w, b = (None if t is None else left.pop(0) for t in (weight, bias))
            return backward_reference(dy, x, mean, rstd, w, b, ctx.constant, ctx.settings)

        pull: Any = torch.func.vjp(gradients, dy, x, *given)[1]
        ddy, dx, *rest = pull(cotangents)
        dw, db = (None if t is None else rest.pop(0) for t in (weight, bias))
        return ddy, dx, None, None, dw, db, None, None

    @staticmethod
    def vmap(info: Any, dims: Any, *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return torch.vmap(backward_reference, dims)(*args), (0, 0, 0)


def _statistics_like(x: Tensor, groups: int, over_batch: bool) -> list[Tensor]:
    shape = [1 if over_batch else x.shape[0], groups]
    return [x.new_empty(shape, dtype=_accumulator(x)) for _ in range(2)]


@kernels.shape_rule("norm_act")
def _forward_shape(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    groups: int,
    over_batch: bool,
    *_: Any,
) -> tuple[Tensor, ...]:
    return (torch.empty_like(x), *_statistics_like(x, groups, over_batch))


@kernels.shape_rule("norm_act_update_")
def _update_shape(
    stream: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    groups: int,
    over_batch: bool,
    *_: Any,
) -> tuple[Tensor, ...]:
    return tuple(_statistics_like(x, groups, over_batch))


@kernels.shape_rule("norm_act_update")
def _sum_shape(stream: Tensor, x: Tensor, *more: Any) -> tuple[Tensor, ...]:
    return (torch.empty_like(stream), *_update_shape(stream, x, *more))


@kernels.shape_rule("norm_act_backward")
def _backward_shape(dy: Tensor, x: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return torch.empty_like(x), *(x.new_empty([x.shape[1]], dtype=_accumulator(x)) for _ in "wb")
