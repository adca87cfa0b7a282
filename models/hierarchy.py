"""The three networks of PHiSeg: what encodes latents of an image, and what decodes them.

A network has `len(channels)` resolutions, each half of the one above it, and latent maps on the
coarsest of them. Latent levels count from the finest. Where its rows are reversible, what lies
between them (the glue: pooling, upsampling, concatenation, 1x1 units) is run again in the backward
pass too, from what is stored anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from revgrad.models.blocks import ConvStyle
from revgrad.models.gaussian import (
    DiagonalGaussian,
    before_softplus,
    refuse_wrong_start,
    start_small_,
)
from revgrad.models.mixture import (
    Distribution,
    GaussianMixture,
    refuse_wrong_components,
    spread_means_,
)
from revgrad.nn import Recompute

_POOL = {2: nn.AvgPool2d, 3: nn.AvgPool3d}
_LINEAR = {2: "bilinear", 3: "trilinear"}
_CONVOLVE = {2: F.conv2d, 3: F.conv3d}

Parts = tuple[Tensor, ...]

# Of the maps between z and what is made of it, by the channels of the finest resolution.
WIDTH_OF_LATENTS = 2


@dataclass(frozen=True)
class Plan:
    """The architecture that the three networks share.

    Attributes:
        style: how convolutions are built.
        channels: of each resolution, the finest first.
        latent_levels: on how many of the coarsest resolutions there are latents.
        latent_channels: of each latent map.
        depth: units of each resolution of an encoder.
        latent_depth: units between a level's features and its distribution.
        decoder_depth: units of every other row.
        recompute_glue: whether the glue is run again instead of stored.
    """

    style: ConvStyle
    channels: tuple[int, ...]
    latent_levels: int
    latent_channels: int
    depth: int
    latent_depth: int
    decoder_depth: int
    recompute_glue: bool

    @property
    def gap(self) -> int:
        """Resolutions above the finest latents."""
        return len(self.channels) - self.latent_levels

    def upsample(self) -> nn.Upsample:
        """Twice the size, linearly."""
        mode = _LINEAR[self.style.spatial_dims]
        return nn.Upsample(scale_factor=2, mode=mode, align_corners=True)

    def recomputed(self, module: nn.Module) -> Recompute:
        """Glue, stored or not."""
        return Recompute(module, save_memory=self.recompute_glue)


class Stage(nn.Module):
    """A row of units with the glue before it.

    Args:
        plan: The architecture.
        in_channels: Of what the glue gives.
        out_channels: Of the row.
        depth: Units of the row.
        before: The first of the glue, such as pooling.
    """

    def __init__(
        self, plan: Plan, in_channels: int, out_channels: int, depth: int, *before: nn.Module
    ) -> None:
        super().__init__()
        row = plan.style.row(in_channels, out_channels, depth)
        entry: list[nn.Module] = []
        if plan.style.reversible:
            *first, self.blocks = row
            entry = [part for unit in first for part in unit.children()]
        else:
            self.blocks = row
        glue = nn.Sequential(*before, *entry)
        self.glue = plan.recomputed(glue) if len(glue) else glue

    def forward(self, x: Tensor) -> Tensor:
        """Glue, then row."""
        return cast(Tensor, self.blocks(self.glue(x)))


class Encoder(nn.Module):
    """A prior or posterior: features of every resolution, and a ladder of latents on them.

    Args:
        plan: The architecture.
        in_channels: Of what is encoded.
        components: Gaussians of the deepest level; more than one make a mixture.
        start_scale: standard deviations at the start; None: softplus(0).
    """

    def __init__(
        self,
        plan: Plan,
        in_channels: int,
        components: int = 1,
        start_scale: float | None = None,
    ) -> None:
        super().__init__()
        refuse_wrong_start(start_scale)
        channels, style = plan.channels, plan.style
        pool = _POOL[style.spatial_dims]
        widths = (in_channels, *channels)
        stages: list[nn.Module] = []
        for i, pair in enumerate(pairwise(widths)):
            # What no latents lie on is glue too: nothing of it is kept.
            above = stages if i == plan.gap else []
            before = [*above, *[pool(2)] * (i > 0)]
            stages = [] if i == plan.gap else stages
            stages.append(Stage(plan, *pair, plan.depth, *before))
        self.stages = nn.ModuleList(stages)
        width = WIDTH_OF_LATENTS * channels[0]
        self.up = nn.ModuleList(
            Stage(plan, plan.latent_channels, width, plan.decoder_depth, plan.upsample())
            for _ in range(plan.latent_levels - 1)
        )
        latents = [
            Latent(plan, channels[plan.gap + level] + width)
            for level in range(plan.latent_levels - 1)
        ]
        self.latents = nn.ModuleList([*latents, Latent(plan, channels[-1], components)])
        if start_scale is not None:
            for latent in self.latents:
                bias = cast(Tensor, cast(Latent, latent).scale.bias)
                nn.init.constant_(bias, before_softplus(start_scale))

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return cast(Tensor, cast(Latent, self.latents[0]).mean.weight).dtype

    def features(self, x: Tensor) -> list[Tensor]:
        """Features of each latent level, the finest first."""
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found

    def level(self, level: int, features: Tensor, below: Tensor | None) -> Distribution:
        """The distribution of a level, given its features and the z of the next deeper one."""
        if below is not None:
            features = torch.cat((self.up[level](below), features), 1)
        return cast(Distribution, self.latents[level](features))


class Latent(nn.Module):
    """A row of units, and the mean and scale of a latent map by 1x1 convolutions.

    With several components these are a mixture's, and its weights come by a third convolution.
    """

    def __init__(self, plan: Plan, width: int, components: int = 1) -> None:
        super().__init__()
        refuse_wrong_components(components)
        channels = components * plan.latent_channels
        self.row = Stage(plan, width, width, plan.latent_depth)
        last = replace(plan.style, bias=True)  # whatever the units have
        self.mean = last.conv(width, channels)
        self.scale = last.conv(width, channels)
        # Near N(0, softplus(0)) whatever the image: else the divergence of large maps is all that
        # the first hundreds of steps see.
        for head in (self.mean, self.scale):
            start_small_(head)
        self.weights: nn.Module | None = None
        if components > 1:
            # The mean is drawn once more, or a seed would start another network than before.
            self.mean = last.conv(width, channels)
            self.weights = last.conv(width, components)
            for head in (self.mean, self.weights):
                start_small_(head)
            spread_means_(cast(Tensor, self.mean.bias))
        self._components = components

    def forward(self, x: Tensor) -> Distribution:
        """The distribution of the latent map."""
        x = self.row(x)
        gaussian = DiagonalGaussian.from_unbounded(self.mean(x), self.scale(x))
        if self.weights is None:
            return gaussian
        return GaussianMixture.from_channels(gaussian, self.weights(x), self._components)


class Likelihood(nn.Module):
    """Logits from latents: z alone, never the image.

    Each z is brought to the finest resolution that its level is to have, `gap` above its own, and
    merged with what comes from the deeper ones.

    Args:
        plan: The architecture.
        out_channels: Number of classes.
    """

    def __init__(self, plan: Plan, out_channels: int) -> None:
        super().__init__()
        deepest = plan.latent_levels - 1
        widths = [plan.channels[level + plan.gap] for level in range(deepest)]
        widths.append(plan.channels[deepest])
        self.deepest = plan.recomputed(_Raised(plan, deepest))
        self.merges = nn.ModuleList(
            Merge(plan, level, widths[level + 1], widths[level]) for level in range(deepest)
        )
        last = replace(plan.style, bias=True)
        self.heads = nn.ModuleList(last.conv(width, out_channels) for width in widths)

    def forward(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """Logits of each level in its own size, that of the image first."""
        *finer, z = latents
        parts: Parts = (self.deepest(z),)
        logits = [_convolved(self.heads[-1], parts)]
        for level in reversed(range(len(finer))):
            parts = self.merges[level](parts, finer[level])
            logits.insert(0, _convolved(self.heads[level], parts))
        return logits


class Merge(nn.Module):
    """What comes from the deeper levels, upsampled, with a level's own z; then a row of units.

    Maps are handed on as the streams of reversible rows, which together are the channels.
    """

    def __init__(self, plan: Plan, level: int, below: int, width: int) -> None:
        super().__init__()
        own = plan.channels[level]
        self.raised = plan.recomputed(_Raised(plan, level))
        self.upsample = plan.upsample()
        self.lean = plan.recompute_glue and plan.style.reversible
        style, depth = plan.style, plan.decoder_depth
        self.entries: nn.ModuleList | None = None
        if style.reversible:
            units = (style.unit(below + own, width // 2, 1) for _ in range(2))
            self.entries = nn.ModuleList(plan.recomputed(_Entry(plan, unit)) for unit in units)
            self.blocks: nn.Module = style.row(width, width, depth)[0]
        else:
            self.blocks = style.row(below + own, width, depth)

    def forward(self, parts: Parts, z: Tensor) -> Parts:
        """The streams of the next deeper level, and z of this one."""
        raised = self.raised(z)
        if self.lean:
            assert self.entries is not None
            return cast(Parts, self.blocks(tuple(e(raised, *parts) for e in self.entries)))
        joined = torch.cat((self.upsample(torch.cat(parts, 1)), raised), 1)
        if self.entries is None:
            return (self.blocks(joined),)
        entries = (cast(_Entry, cast(Recompute, e).module) for e in self.entries)
        return cast(Parts, self.blocks(tuple(entry.unit(joined) for entry in entries)))


class _Entry(nn.Module):
    """A 1x1 unit in front of one stream.

    The convolution commutes with upsampling and goes by parts, so there is neither a joined map
    nor an upsampled one of the deeper level's width.
    """

    def __init__(self, plan: Plan, unit: nn.Sequential) -> None:
        super().__init__()
        self.upsample, self.unit = plan.upsample(), unit

    def forward(self, raised: Tensor, *parts: Tensor) -> Tensor:
        conv, *rest = self.unit
        y = self.upsample(_convolved(conv, parts, bias=False))
        y += _convolved(conv, (raised,), first=sum(p.shape[1] for p in parts))
        for module in rest:
            y = module(y)
        return cast(Tensor, y)


class _Raised(nn.Sequential):
    """A row of units on z, then `gap` times twice the size and a unit."""

    def __init__(self, plan: Plan, level: int) -> None:
        width = plan.channels[level]
        parts: list[nn.Module] = [Stage(plan, plan.latent_channels, width, plan.decoder_depth)]
        for _ in range(plan.gap):
            parts += [plan.upsample(), plan.style.unit(width, width)]
        super().__init__(*parts)


def _convolved(conv: nn.Module, parts: Parts, first: int = 0, bias: bool = True) -> Tensor:
    """A 1x1 convolution of parts of its input, the first of which starts at channel `first`."""
    weight, added = cast(Tensor, conv.weight), cast("Tensor | None", conv.bias)
    convolve = _CONVOLVE[weight.dim() - 2]
    total = None
    for part in parts:
        end = first + part.shape[1]
        value = convolve(part, weight[:, first:end], added if bias and total is None else None)
        total, first = value if total is None else total.add_(value), end
    assert total is not None
    return total
