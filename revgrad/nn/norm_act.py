"""A normalisation and the activation behind it as one module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from revgrad.ops.norm_act import ACTIVATIONS, Activation, Settings, norm_act_with_statistics

NORMS = ("instance", "group", "layer", "batch")
_AFFINE = {"instance": False, "group": True, "layer": True, "batch": True}  # torch's defaults
_BATCHED = ("instance", "batch")  # those that may keep running statistics


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
        (N, C, ...) and the same out; for "layer" (..., *num_features).
    """

    _version = 2  # as torch's: state_dicts hold num_batches_tracked
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
        options = {"device": device, "dtype": dtype}
        ones, zeros = torch.ones(shape, **options), torch.zeros(shape, **options)
        self.register_parameter("weight", nn.Parameter(ones) if self.affine else None)
        self.register_parameter("bias", nn.Parameter(zeros) if self.affine and bias else None)
        if norm in _BATCHED:
            self._register_statistics(shape if track else None, options)

    def _register_statistics(self, shape: tuple[int, ...] | None, options: dict[str, Any]) -> None:
        kept = shape is not None
        self.register_buffer("running_mean", torch.zeros(shape, **options) if kept else None)
        self.register_buffer("running_var", torch.ones(shape, **options) if kept else None)
        count = torch.tensor(0, dtype=torch.long, device=options["device"]) if kept else None
        self.register_buffer("num_batches_tracked", count)

    @classmethod
    def like(cls, module: nn.Module, activation: nn.Module | None = None) -> NormAct:
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
        if self.norm == "layer":
            return self._trailing(x)
        if self.norm == "instance" and x.dim() - 1 == self.spatial_dims:
            return self.forward(x.unsqueeze(0)).squeeze(0)  # torch takes one sample without N too
        self._check_input(x)
        if self._has_statistics() and not self.training:
            return self._by_running_statistics(x)
        settings = self._settings(x.shape[1], over_batch=self.norm == "batch")
        y, mean, rstd = norm_act_with_statistics(x, self.weight, self.bias, None, None, settings)
        if self._has_statistics() and self.track_running_stats:
            self._update_statistics(x, mean, rstd)
        return y

    def _has_statistics(self) -> bool:
        return self.norm in _BATCHED and self.running_mean is not None

    def _settings(self, channels: int, over_batch: bool = False) -> Settings:
        groups = {"group": self.groups or 1, "layer": 1}.get(self.norm, channels)
        kind = ACTIVATIONS.index(self.activation)
        return Settings(groups, over_batch, self.eps, kind, self.slope)

    def _trailing(self, x: Tensor) -> Tensor:
        shape = _shape(self.num_features, "layer")
        if x.shape[-len(shape) :] != shape:
            raise ValueError(f"made for trailing axes {shape}, got x of {tuple(x.shape)}")
        rows = x.reshape(-1, torch.Size(shape).numel())
        weight, bias = (None if t is None else t.flatten() for t in (self.weight, self.bias))
        y = norm_act_with_statistics(rows, weight, bias, None, None, self._settings(1))[0]
        return y.reshape(x.shape)

    def _by_running_statistics(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        assert self.running_mean is not None and self.running_var is not None
        mean = self.running_mean.to(wide)[None]
        rstd = (self.running_var.to(wide)[None] + self.eps).rsqrt()
        settings = self._settings(x.shape[1], over_batch=True)
        return norm_act_with_statistics(x, self.weight, self.bias, mean, rstd, settings)[0]

    @torch.no_grad()
    def _update_statistics(self, x: Tensor, mean: Tensor, rstd: Tensor) -> None:
        """Move towards the mean over samples of the statistics, the variance unbiased."""
        if x.numel() == 0:
            return
        assert self.running_mean is not None and self.running_var is not None
        share: float | Tensor = self.momentum or 0.0
        if self.norm == "batch":
            assert self.num_batches_tracked is not None
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
        if channels != self.num_features:
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


_NORMS: dict[type[nn.Module], str] = {
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


def norm_of(module: nn.Module) -> str | None:
    """The norm that a module of torch's computes; None for others, subclasses too."""
    return _NORMS.get(type(module))


def activation_of(module: nn.Module | None) -> Activation | None:
    """The activation that a module of torch's computes ("none" without one), if NormAct has it."""
    if module is None:
        return "none"
    if isinstance(module, nn.GELU) and module.approximate != "none":
        return None
    return _ACTIVATIONS.get(type(module))


def _spatial_dims(module: nn.Module) -> int | None:
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
