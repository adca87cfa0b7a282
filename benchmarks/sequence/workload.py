"""The network that is measured, and one training step of it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from revgrad.benchmarks.peers import ADAPTORS, Couplings
from revgrad.benchmarks.sequence.settings import Settings

_CONVOLUTION: dict[int, type[nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
_NORM: dict[int, type[nn.Module]] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def couplings(settings: Settings, depth: int) -> Couplings:
    """The sub-networks in pairs, `depth` of them in all, always with the same weights."""
    torch.manual_seed(0)
    modules = [_sub_network(settings) for _ in range(depth)]
    return list(zip(modules[::2], modules[1::2], strict=True))


def _sub_network(settings: Settings) -> nn.Module:
    channels, dims = settings.channels // 2, settings.spatial_dims
    module = nn.Sequential(
        _CONVOLUTION[dims](channels, channels, 3, padding=1),
        _NORM[dims](channels, affine=True),
        nn.LeakyReLU(0.01),
    )
    return module.to(settings.device).to(memory_format=memory_format(settings))  # type: ignore[call-overload]


def memory_format(settings: Settings) -> torch.memory_format:
    """Of the input and the weights."""
    if settings.channels_last:
        return _CHANNELS_LAST[settings.spatial_dims]
    return torch.contiguous_format


class ModuleStep:
    """One training step of a module without an optimizer.

    The caller holds input, output and the output's gradient, as a network around the module
    would: three activations that no module can save.
    """

    def __init__(self, module: nn.Module, settings: Settings) -> None:
        self.module = module
        self.settings = settings
        generator = torch.Generator().manual_seed(1)
        tensors = (torch.randn(settings.shape, generator=generator) for _ in range(2))
        x, dy = (t.to(settings.device, memory_format=memory_format(settings)) for t in tensors)
        self.x, self.dy = x.requires_grad_(), dy

    def __call__(self) -> None:
        self.x.grad = None
        self.module.zero_grad(set_to_none=True)
        settings = self.settings
        with torch.autocast(settings.device, torch.bfloat16, settings.dtype == "bfloat16"):
            y = self.module(self.x)
        y.backward(self.dy)


class Step(ModuleStep):
    """The step of one variant, the same for all of them.

    Its sub-networks are its own: variants may change theirs, as fusing does.
    """

    def __init__(self, variant: str, settings: Settings, depth: int) -> None:
        adaptor = ADAPTORS[variant]
        if adaptor.other_format:
            settings = replace(settings, channels_last=not settings.channels_last)
        self.pairs = couplings(settings, depth)
        super().__init__(adaptor.wrap(self.pairs), settings)
