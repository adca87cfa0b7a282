"""The U-Net: the deterministic segmentation network, and the body of the stochastic ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from revgrad.models.blocks import ConvStyle, Named, refuse_wrong_channels
from revgrad.models.deterministic import OneAnswer
from revgrad.nn import ReversibleSequence

# Of the Probabilistic U-Net and PHiSeg, and of the U-Nets that they are compared with.
CHANNELS = (32, 64, 128, 192, 192, 192, 192)

_POOL = {2: F.avg_pool2d, 3: F.avg_pool3d}
_LINEAR = {2: "bilinear", 3: "trilinear"}
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Encoder(nn.Module):
    """The way down: a row of units on each level, average pooling by two between levels.

    Args:
        style: how the units are built.
        in_channels: channels of the input.
        channels: of each level.
        depth: units of each level.
        dropout: share of the numbers that enter a level that are set to zero.
        dropout_levels: how many of the deepest levels have dropout.

    Attributes:
        first_dropout: the first level with dropout.
    """

    def __init__(
        self,
        style: ConvStyle,
        in_channels: int,
        channels: Sequence[int],
        depth: int,
        *,
        dropout: float = 0.0,
        dropout_levels: int = 0,
    ) -> None:
        super().__init__()
        refuse_wrong_channels(channels)
        if depth < 1:
            raise ValueError(f"depth, the units of each level, must be at least 1, not {depth!r}")
        if dropout_levels < 0:
            raise ValueError(f"dropout_levels must not be negative, it is {dropout_levels!r}")
        self._pool = _POOL[style.spatial_dims]
        self.dropout = nn.Dropout(dropout)
        self.first_dropout = max(len(channels) - dropout_levels, 0)
        widths = zip((in_channels, *channels[:-1]), channels, strict=True)
        self.rows = nn.ModuleList(style.row(before, after, depth) for before, after in widths)

    def forward(self, x: Tensor, first: int = 0, last: int | None = None) -> list[Tensor]:
        """The features of the levels `first` to `last` (exclusive), the finest first.

        Args:
            x: what level 0 gets, or the features of level ``first - 1``.
        """
        features = []
        for level in range(len(self.rows))[first:last]:
            x = self._pool(x, 2) if level else x
            x = self.dropout(x) if level >= self.first_dropout else x
            x = self.rows[level](x)
            features.append(x)
        return features


class Decoder(nn.Module):
    """The way up: on each level, what comes from below, upsampled, beside the encoder's features.

    Args:
        align_corners: of the bilinear or trilinear upsampling, see `torch.nn.functional`.
        style, channels, depth, dropout, dropout_levels: as in `Encoder`. The deepest level is the
            encoder's alone.
    """

    def __init__(
        self,
        style: ConvStyle,
        channels: Sequence[int],
        depth: int,
        *,
        align_corners: bool,
        dropout: float = 0.0,
        dropout_levels: int = 0,
    ) -> None:
        super().__init__()
        self._mode = _LINEAR[style.spatial_dims]
        self._align_corners = align_corners
        self.dropout = nn.Dropout(dropout)
        self.first_dropout = max(len(channels) - 1 - dropout_levels, 0)
        self.rows = nn.ModuleList(
            style.row(here + below, here, depth) for here, below in pairwise(channels)
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The maps of all levels, the finest first; the deepest is the encoder's."""
        maps = [features[-1]]
        for level in reversed(range(len(self.rows))):
            skip = features[level]
            up = F.interpolate(
                maps[0], skip.shape[2:], mode=self._mode, align_corners=self._align_corners
            )
            x = torch.cat([up, skip], 1)
            x = self.dropout(x) if level >= self.first_dropout else x
            maps.insert(0, self.rows[level](x))
        return maps


class UNetBody(nn.Module):
    """A U-Net without its last layer: image to feature maps.

    Arguments as in `UNet`; `dropout_levels` is 0 where none is meant.
    """

    def __init__(
        self,
        style: ConvStyle,
        in_channels: int,
        channels: Sequence[int],
        depth: int,
        *,
        align_corners: bool,
        dropout: float = 0.0,
        dropout_levels: int = 0,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(
            style,
            in_channels,
            channels,
            depth,
            dropout=dropout,
            dropout_levels=dropout_levels,
        )
        self.decoder = Decoder(
            style,
            channels,
            depth,
            align_corners=align_corners,
            dropout=dropout,
            dropout_levels=dropout_levels,
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """The maps of all levels, the finest first: ``(N, channels[level], *spatial)``."""
        maps: list[Tensor] = self.decoder(self.encoder(image))
        return maps


class UNet(OneAnswer):
    """A U-Net (Ronneberger et al. 2015), as the papers on ambiguous segmentation build it.

    Rows of 3^d units on each level, average pooling, linear upsampling, concatenated skips, a 1x1
    convolution to the classes. It is deterministic: all of its samples are the same. The loss is
    the cross-entropy, summed over pixels, mean over the batch. Weights start He normal, biases at
    zero.

    Args:
        spatial_dims: spatial axes, 2 or 3.
        in_channels: channels of the image.
        out_channels: number of classes.
        channels: of each level.
        depth: units of each level, on the way down and as many on the way up.
        align_corners: of the upsampling. False as in PHiSeg's code; the Probabilistic U-Net has
            True.
        dropout: share of the numbers that enter a level that are set to zero in training.
        dropout_levels: how many of the innermost levels have dropout, on the way down and as many
            on the way up; None: all.
        norm, act, bias: of all units, see `revgrad.models.blocks.ConvStyle`. The last convolution
            has a bias in any case.
        reversible: whether the rows of a level are reversible sequences.
        couplings_per_unit, arithmetic: of the reversible sequences, see `ConvStyle`.

    Shapes:
        ``net(image)``: (N, in_channels, *spatial) to (N, out_channels, *spatial), each axis a
        multiple of ``2 ** (levels - 1)``, as logits.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = CHANNELS,
        depth: int = 3,
        *,
        align_corners: bool = False,
        dropout: float = 0.0,
        dropout_levels: int | None = None,
        norm: Named | None = "batch",
        act: Named = "relu",
        bias: bool = True,
        reversible: bool = False,
        couplings_per_unit: int = 1,
        arithmetic: str = "float",
    ) -> None:
        divisor = divisor_of(channels)
        super().__init__(spatial_dims, in_channels, out_channels, divisor=divisor, norm=norm)
        if dropout_levels is None:
            dropout_levels = len(channels)
        style = ConvStyle(spatial_dims, norm, act, bias, reversible, couplings_per_unit, arithmetic)
        self.body = UNetBody(
            style,
            in_channels,
            channels,
            depth,
            align_corners=align_corners,
            dropout=dropout,
            dropout_levels=dropout_levels,
        )
        self.head = replace(style, bias=True).conv(channels[0], out_channels)
        he_normal_(self, norm)

    def features(self, image: Tensor) -> list[Tensor]:
        """The maps before the classes, of all levels, the finest first."""
        self.check_image(image)
        maps: list[Tensor] = self.body(image)
        return maps

    def logits(self, image: Tensor) -> Tensor:
        """``(N, out_channels, *spatial)``."""
        logits: Tensor = self.head(self.features(image)[0])
        return logits


def divisor_of(channels: Sequence[int]) -> int:
    """What an image's axes must be multiples of, with a level for each number of channels.

    Raises:
        ValueError: The channels are not one positive number for each level.
    """
    refuse_wrong_channels(channels)
    return int(2 ** (len(channels) - 1))


def he_normal_(module: nn.Module, norm: Named | None) -> None:
    """Start convolutions with He normal weights (fan in) and zero biases.

    Networks without norms need it: torch's start has a sixth of the variance, and nothing would be
    left of the image after seven levels. In reversible sequences it would be too much, for each
    coupling adds to a stream: they keep torch's start, which without norms is divided by the
    number of convolutions in the sequence, or streams would grow by half on each level.

    Args:
        norm: of the units.
    """
    for child in module.children():
        if isinstance(child, ReversibleSequence):
            if norm is None:
                _divide_weights(child)
        elif isinstance(child, _CONVS):
            nn.init.kaiming_normal_(child.weight, nonlinearity="relu")
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        else:
            he_normal_(child, norm)


def _divide_weights(module: nn.Module) -> None:
    """Divide the weights of convolutions by the number of convolutions."""
    convs = [m for m in module.modules() if isinstance(m, _CONVS)]
    with torch.no_grad():
        for conv in convs:
            conv.weight /= len(convs)
