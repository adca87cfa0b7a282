"""A normalisation and the activation behind it as one module."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from revgrad.autograd.inventory import known
from revgrad.autograd.tail import Statistics, tail
from revgrad.ops.norm_act import (
    ACTIVATIONS,
    Activation,
    Settings,
    norm_act_backward,
    norm_act_update,
    norm_act_update_,
    norm_act_with_statistics,
)

NORMS = ("instance", "group", "layer", "batch")
_AFFINE = {"instance": False, "group": True, "layer": True, "batch": True}  # torch's defaults
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_BATCHED = ("instance", "batch")  # those that may keep running statistics

_Maybe = Tensor | None
_Arguments = tuple[Tensor, tuple[_Maybe, _Maybe, _Maybe, _Maybe], Settings]


@known
@tail
class NormAct(nn.Module):
    """Normalises and activates in one pass, with the parameters and buffers of torch's module.

    Its state_dict is that of `nn.InstanceNorm*d`, `nn.GroupNorm`, `nn.LayerNorm` or
    `nn.BatchNorm*d`. `revgrad.nn.fuse` puts it in their places.

    Args:
        num_features: Channels C; for "layer" the trailing shape, as `nn.LayerNorm` has it.
        norm: "instance", "group", "layer" or "batch", each as torch's module of that name.
        activation: "none", "relu", "leaky_relu", "silu" or "gelu" (the exact one).
        groups: How many, for "group" alone.
        eps: Added to the variance.
        slope: Of the leaky ReLU for negative numbers.
        affine: Whether there are a weight and a bias; torch's default for the norm if None.
        bias: Whether there is a bias, if affine.
        momentum: Share of the new statistics in the running ones; None for the mean of all.
        track_running_stats: Whether running statistics are kept, and used in evaluation. For
            "instance" and "batch"; torch's default if None.
        device: Of parameters and buffers.
        dtype: Of parameters and buffers.

    Shapes:
        (N, C, ...) and the same out; for "layer" `(..., *num_features)`.
    """

    _version = 2  # as torch's: state_dicts hold num_batches_tracked
    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int | Sequence[int],
        norm: str = "instance",
        activation: Activation = "none",
        *,
        groups: int | None = None,
        eps: float = 1e-5,
        slope: float = 0.01,
        affine: bool | None = None,
        bias: bool = True,
        momentum: float | None = 0.1,
        track_running_stats: bool | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_names(norm, activation)
        if (norm == "group") != (groups is not None):
            raise ValueError(f"groups go with norm='group' alone, got {groups} for {norm!r}")
        shape = _shape(num_features, norm)
        if groups is not None and (groups < 1 or shape[0] % groups):
            raise ValueError(f"groups must divide the {shape[0]} channels, got {groups}")
        track = norm == "batch" if track_running_stats is None else track_running_stats
        if track and norm not in _BATCHED:
            raise ValueError(f"running statistics go with {' and '.join(_BATCHED)}, not {norm!r}")
        self.norm, self.activation = norm, activation
        self.eps, self.slope, self.momentum = eps, slope, momentum
        self.groups, self.track_running_stats = groups, track
        self.num_features = num_features
        self.affine = _AFFINE[norm] if affine is None else affine
        self.spatial_dims: int | None = None
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        ones, zeros = torch.ones(shape, **options), torch.zeros(shape, **options)
        self.register_parameter("weight", nn.Parameter(ones) if self.affine else None)
        self.register_parameter("bias", nn.Parameter(zeros) if self.affine and bias else None)
        if norm in _BATCHED:
            self._register_statistics(shape if track else None, options)

    def _register_statistics(self, shape: tuple[int, ...] | None, options: dict[str, Any]) -> None:
        made: tuple[_Maybe, ...] = (None, None, None)
        if shape is not None:
            count = torch.tensor(0, dtype=torch.long, device=options["device"])
            made = torch.zeros(shape, **options), torch.ones(shape, **options), count
        for name, buffer in zip(_STATISTICS, made, strict=True):
            self.register_buffer(name, buffer)

    @classmethod
    def like(cls, module: Any, activation: nn.Module | None = None) -> NormAct:
        """Stand for a module of torch's, with its own parameters and buffers.

        Args:
            module: An instance, group, layer or batch norm.
            activation: A ReLU, leaky ReLU, SiLU or exact GELU.

        Raises:
            TypeError: If it is none of these; subclasses may compute something else.
        """
        norm, kind = norm_of(module), activation_of(activation)
        if norm is None or kind is None:
            other = activation if norm is not None else module
            raise TypeError(f"NormAct cannot stand for {type(other).__name__}")
        features = getattr(module, _FEATURES[norm])
        made = cls(
            tuple(features) if norm == "layer" else features,
            norm,
            kind,
            groups=getattr(module, "num_groups", None),
            eps=module.eps,
            slope=getattr(activation, "negative_slope", 0.01),
            affine=False,
            momentum=getattr(module, "momentum", None),
            track_running_stats=False,
        )
        made.affine = module.weight is not None
        made.track_running_stats = getattr(module, "track_running_stats", False)
        made.spatial_dims = _spatial_dims(module)
        made._parameters = dict(module._parameters)
        made._buffers = dict(module._buffers)
        return made.train(module.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and activate."""
        if self.norm == "instance" and x.dim() - 1 == self.spatial_dims:
            return self._of_batch(x[None])[0]  # torch takes one sample without N too
        return self._of_batch(x)

    # --- as the tail of a sub-network, see revgrad.autograd.tail ------------------------------

    def can_add_to(self, stream: Tensor) -> bool:
        """Whether the value for an input of the stream's shape can be added to it in one pass."""
        own_axes = self.spatial_dims is None or stream.dim() == self.spatial_dims + 2
        # What somebody put in the place of a parameter is none of the tape's.
        own = "weight" in self._parameters and "bias" in self._parameters
        return self.norm != "layer" and stream.dim() > 1 and own_axes and own

    def update_(
        self, stream: Tensor, x: Tensor, *, sign: int = 1, fraction_bits: int | None = None
    ) -> Statistics:
        """Add the result to a stream in place, or subtract it, in one pass. Without autograd.

        Args:
            stream: The shape of x; x's type or a wider one, or int32 with `fraction_bits`.
            x: As for `forward`, with its batch axis.
            sign: 1 adds, -1 subtracts.
            fraction_bits: Binary digits behind the point of an int32 stream.

        Returns:
            What `gradients` needs beside the input.
        """
        rows, vectors, settings = self._arguments(x)
        seen = stream if rows is x else stream.view(rows.shape)
        mean, rstd = norm_act_update_(
            seen, rows, *vectors, settings, sign=sign, fraction_bits=fraction_bits
        )
        self._update_statistics(x, mean, rstd)
        return Statistics(mean, rstd, settings, constant=vectors[2] is not None)

    def updated(
        self, stream: Tensor, x: Tensor, *, sign: int = 1, fraction_bits: int | None = None
    ) -> tuple[Tensor, Statistics]:
        """The sum that `update_` would leave in the stream, in new memory, in one pass too.

        Returns:
            The sum, and what `gradients` needs beside the input.
        """
        rows, vectors, settings = self._arguments(x)
        seen = stream if rows is x else stream.reshape(rows.shape)
        total, mean, rstd = norm_act_update(
            seen, rows, *vectors, settings, sign=sign, fraction_bits=fraction_bits
        )
        self._update_statistics(x, mean, rstd)
        kept = Statistics(mean, rstd, settings, constant=vectors[2] is not None)
        return total if rows is x else total.reshape(stream.shape), kept

    def gradients(
        self, dy: Tensor, x: Tensor, statistics: Statistics
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The gradient of the input, and each parameter with its own."""
        mean, rstd, settings, constant = statistics
        dx, *own = norm_act_backward(dy, x, mean, rstd, self.weight, self.bias, constant, settings)
        pairs = zip((self.weight, self.bias), own, strict=True)
        return dx, [(parameter, grad) for parameter, grad in pairs if parameter is not None]

    def largest(self, shape: Sequence[int]) -> Tensor:
        """A bound of the value's size.

        Of n numbers, none is further than sqrt(n - 1) deviations from the mean, and n / sqrt(n - 1)
        where the mean is rounded to one of the other numbers. No activation makes a number larger,
        but a steep leaky ReLU.
        """
        weight, bias = (None if t is None else t.detach() for t in (self.weight, self.bias))
        device = None if weight is None else weight.device
        if self._has_statistics() and not self.training:
            return torch.full((), math.inf, device=device)
        samples = 1 if self.norm == "batch" else max(1, shape[0])
        together = math.prod(shape) // (self._settings(shape[1]).groups * samples)
        steepest = max(1.0, abs(self.slope)) if self.activation == "leaky_relu" else 1.0
        size = torch.ones((), device=device) if weight is None else weight.abs().amax().float()
        bound = 1.001 * max(1.0, together / math.sqrt(max(1, together - 1))) * size
        return steepest * (bound if bias is None else bound + bias.abs().amax().float())

    # --- inside -------------------------------------------------------------------------------

    def _of_batch(self, x: Tensor) -> Tensor:
        rows, vectors, settings = self._arguments(x)
        y, mean, rstd = norm_act_with_statistics(rows, *vectors, settings)
        self._update_statistics(x, mean, rstd)
        return y if rows is x else y.reshape(x.shape)

    def _arguments(self, x: Tensor) -> _Arguments:
        """What the operators take."""
        weight, bias = self.weight, self.bias
        if self.norm == "layer":
            shape = _shape(self.num_features, "layer")
            if x.shape[-len(shape) :] != shape:
                raise ValueError(f"made for trailing axes {shape}, got x of {tuple(x.shape)}")
            rows = x if x.dim() == 2 and len(shape) == 1 else x.reshape(-1, math.prod(shape))
            if len(shape) > 1:
                weight, bias = (None if t is None else t.flatten() for t in (weight, bias))
            return rows, (weight, bias, None, None), self._settings(1)
        self._check_input(x)
        if self._has_statistics() and not self.training:
            return x, (weight, bias, *self._running(x)), self._settings(x.shape[1], True)
        settings = self._settings(x.shape[1], over_batch=self.norm == "batch")
        return x, (weight, bias, None, None), settings

    def _settings(self, channels: int, over_batch: bool = False) -> Settings:
        groups = {"group": self.groups or 1, "layer": 1}.get(self.norm, channels)
        kind = ACTIVATIONS.index(self.activation)
        return Settings(groups, over_batch, self.eps, kind, self.slope)

    def _running(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The running statistics as mean and rstd."""
        assert self.running_mean is not None and self.running_var is not None
        wide = torch.promote_types(x.dtype, torch.float32)
        mean, variance = (t.to(wide)[None] for t in (self.running_mean, self.running_var))
        return mean, (variance + self.eps).rsqrt()

    def _has_statistics(self) -> bool:
        return self._buffers.get("running_mean") is not None

    @torch.no_grad()
    def _update_statistics(self, x: Tensor, mean: Tensor, rstd: Tensor) -> None:
        """In training, move towards the mean over samples, the variance unbiased."""
        tracked = self.training and self._has_statistics() and self.track_running_stats
        if not tracked or x.numel() == 0:
            return
        assert self.running_mean is not None and self.running_var is not None
        share: float | Tensor = self.momentum or 0.0
        if self.norm == "batch" and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                share = 1 / self.num_batches_tracked.double()
        count = x.numel() // mean.numel()
        # In double, because the difference from eps may be small.
        variance = (rstd.double().pow(-2) - self.eps).clamp_min(0) * (count / (count - 1))
        for running, now in ((self.running_mean, mean), (self.running_var, variance)):
            running.add_((now.double().mean(0) - running) * share)

    def _check_input(self, x: Tensor) -> None:
        channels = x.shape[1] if x.dim() > 1 else 0
        named = self.weight is not None or self.bias is not None or self._has_statistics()
        if channels != self.num_features and (named or self.norm != "instance" or x.dim() < 2):
            raise ValueError(
                f"made for (N, {self.num_features}, ...), got x of shape {tuple(x.shape)}"
            )
        statistics = {"instance": channels * x.shape[0], "batch": channels}.get(self.norm)
        own = self.training or not self._has_statistics()
        if own and statistics and x.numel() == statistics:
            raise ValueError(f"one number a channel has no variance, got x of {tuple(x.shape)}")

    def extra_repr(self) -> str:
        parts = [str(self.num_features), self.norm, self.activation, f"eps={self.eps}"]
        if self.norm == "group":
            parts.insert(2, f"groups={self.groups}")
        if self.activation == "leaky_relu":
            parts.append(f"slope={self.slope}")
        if self.norm in _BATCHED:
            parts.append(f"momentum={self.momentum}")
            parts.append(f"track_running_stats={self.track_running_stats}")
        return ", ".join([*parts, f"affine={self.affine}"])


_NORMS: dict[type, str] = {
    nn.InstanceNorm1d: "instance",
    nn.InstanceNorm2d: "instance",
    nn.InstanceNorm3d: "instance",
    nn.GroupNorm: "group",
    nn.LayerNorm: "layer",
    nn.BatchNorm1d: "batch",
    nn.BatchNorm2d: "batch",
    nn.BatchNorm3d: "batch",
}
_FEATURES = {
    "instance": "num_features",
    "group": "num_channels",
    "layer": "normalized_shape",
    "batch": "num_features",
}
_ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.Identity: "none",
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
}


def norm_of(module: object) -> str | None:
    """The norm that a module of torch's computes; None for others, subclasses too."""
    return _NORMS.get(type(module))


def activation_of(module: nn.Module | None) -> Activation | None:
    """The activation that a module of torch's computes ("none" without one), if NormAct has it."""
    if module is None:
        return "none"
    if isinstance(module, nn.GELU) and module.approximate != "none":
        return None
    return _ACTIVATIONS.get(type(module))


def _spatial_dims(module: object) -> int | None:
    found = [d for d in (1, 2, 3) if type(module).__name__.endswith(f"Norm{d}d")]
    return found[0] if found else None


def _check_names(norm: str, activation: str) -> None:
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")


def _shape(num_features: int | Sequence[int], norm: str) -> tuple[int, ...]:
    shape = (num_features,) if isinstance(num_features, int) else tuple(num_features)
    if norm != "layer" and len(shape) != 1:
        raise ValueError(f"num_features must be a number for norm={norm!r}, got {num_features}")
    return shape
