"""The iUNet: a U-Net that is invertible from its first to its last map."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from revgrad.models.blocks import are_positive, refuse_wrong_channels
from revgrad.nn import (
    AdditiveCoupling,
    ChannelMixing,
    JoinSkip,
    NormAct,
    OrthogonalDownsample,
    OrthogonalUpsample,
    ReversibleSequence,
    SplitSkip,
)

Block = Callable[[int, int, int], nn.Module]
Stride = tuple[int, ...]
Pair = tuple[int, int]

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class iUNet(nn.Module):
    """A fully invertible U-Net (iUNet) for segmentation.

    Etmann, Ke and Schönlieb, *iUNets: Learnable Invertible Up- and Downsampling for Large-Scale
    Inverse Problems* (2020). Additive couplings whose streams change places, learnable orthogonal
    resampling, orthogonal mixing of channels. On each level a part of the channels stays behind as
    the skip and the rest goes down, so that no number is lost. The body is one
    `ReversibleSequence`: no activation in it is stored, and memory does not grow with `depths`.

    Args:
        spatial_dims: Number of spatial axes, 1, 2 or 3.
        in_channels: Channels of the image.
        out_channels: Channels of the result, such as classes.
        channels: Requested channels of each level, both streams together. From the second on they
            are taken as ratios: of C channels, max(1, round(C * (m - f) / m)) skip, where m is the
            product of the level's stride and f the requested ratio; the rest becomes m times as
            many channels on the next level. The attribute `channels` has what came out.
        depths: Coupling blocks of each level, on the way down and as many again on the way up (on
            the deepest level as well, which so has twice its depth in a row).
        strides: Factor of each downsampling: a number for all, or for each level but the deepest a
            number or one number for each axis.
        method: How the orthogonal matrices are made of free parameters: "exp", "cayley",
            "householder" or "givens".
        init: How the resampling begins: "haar", "pixel_shuffle", "random", or a matrix.
        mixing_every: The channels are mixed after every n-th coupling block of a level, and before
            its counterpart on the way up; 0: never; -1: once a level but on the deepest, after the
            last block on the way down and before the first on the way up.
        block: Makes the sub-network of a coupling: called as `block(in_channels, out_channels,
            spatial_dims)`, it gives a module that keeps the size. The two numbers differ where the
            streams are unequal. None: two units of 3^d convolution without bias, instance norm and
            leaky ReLU.
        padding_mode: How images are padded whose axes do not divide by the product of the strides:
            "constant" (zeros), "reflect", "replicate" or "circular". None: they are refused.
        arithmetic: "float" or "exact", see `ReversibleSequence`.
        fraction_bits: Binary digits behind the point in exact arithmetic.
        save_memory: If False, the body is run by ordinary autograd. May be changed at any time.

    Attributes:
        body: The reversible U-Net, a bijection from (N, channels[0], ...) to the same shape; its
            axes must divide by `divisor`. Of its two parts, the encoder leaves the skips in the
            state, and the decoder takes them from there.
        channels: The channels of each level.
        splits: For each level but the deepest, how many channels skip and how many go down.
        divisor: The product of the strides along each axis.

    Shapes:
        (N, in_channels, ...) to (N, out_channels, ...) of the same size, as logits.

    Raises:
        ValueError: If an argument has the wrong length or a value that is not accepted, or fewer
            than two channels would go down somewhere: each level needs its two streams.

    Note:
        The default blocks normalise each channel of each image over its pixels, so in training the
        deepest map must be larger than one pixel.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        depths: Sequence[int],
        *,
        strides: int | Sequence[int | Sequence[int]] = 2,
        method: str = "exp",
        init: str | Tensor = "haar",
        mixing_every: int = -1,
        block: Block | None = None,
        padding_mode: str | None = "constant",
        arithmetic: str = "float",
        fraction_bits: int = 20,
        save_memory: bool = True,
    ) -> None:
        super().__init__()
        _refuse_unknown(spatial_dims, in_channels, out_channels, mixing_every, padding_mode)
        _refuse_wrong_levels(channels, depths)
        self.spatial_dims = spatial_dims
        self.depths = tuple(depths)
        self.strides = _strides_by_level(strides, len(channels) - 1, spatial_dims)
        self.divisor = tuple(
            math.prod(s[axis] for s in self.strides) for axis in range(spatial_dims)
        )
        self.splits = _feasible_splits(channels, self.strides)
        self.channels = (channels[0], *_widths_below(self.splits, self.strides))
        self.padding_mode = padding_mode
        self._mixing_every = mixing_every

        conv = _CONV[spatial_dims - 1]
        self.stem = conv(in_channels, channels[0], 1)
        options: dict[str, Any] = {
            "save_memory": save_memory,
            "arithmetic": arithmetic,
            "fraction_bits": fraction_bits,
        }
        encoder, decoder = self._layers(block or default_block, method, init)
        self.body = ReversibleSequence(
            [ReversibleSequence(encoder, **options), ReversibleSequence(decoder, **options)],
            **options,
        )
        self.head = conv(channels[0], out_channels, 1)

    @property
    def save_memory(self) -> bool:
        """Whether activations are computed back in the backward pass instead of stored."""
        return self.body.save_memory

    @save_memory.setter
    def save_memory(self, value: bool) -> None:
        for sequence in (self.body, *self.body):
            sequence.save_memory = value

    def forward(self, x: Tensor) -> Tensor:
        """Segment images of any size (see `padding_mode`)."""
        if x.dim() != self.spatial_dims + 2:
            raise ValueError(
                f"expected (N, C, ...) with {self.spatial_dims} spatial axes, not {tuple(x.shape)}"
            )
        before, after = self._padding(x.shape[2:])
        y = self.stem(x)
        if any(after) and self.padding_mode is not None:
            pairs = reversed(list(zip(before, after, strict=True)))
            y = F.pad(y, [n for pair in pairs for n in pair], mode=self.padding_mode)
        y = self.body(y)
        for axis, (start, size) in enumerate(zip(before, x.shape[2:], strict=True), 2):
            y = y.narrow(axis, start, size)
        return self.head(y)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Run the way down.

        Args:
            x: The input of the body, (N, channels[0], ...).

        Returns:
            The skip of each level but the deepest, from the top on, then the deepest map. Together
            they have as many numbers as the input.
        """
        encoder = self.body[0]
        assert isinstance(encoder, ReversibleSequence)
        total = self.channels[0]
        if x.dim() != self.spatial_dims + 2 or x.shape[1] != total:
            raise ValueError(
                f"expected (N, {total}, ...) with {self.spatial_dims} spatial axes, the input of "
                f"the body, not {tuple(x.shape)}"
            )
        y1, y2, *skips = encoder(x.split(_halves(total), 1))
        pairs = list(zip(skips[::2], skips[1::2], strict=True))
        return [torch.cat(pair, 1) for pair in (*reversed(pairs), (y1, y2))]

    def decode(self, maps: Sequence[Tensor]) -> Tensor:
        """Run the way up: `decode(encode(x))` is `body(x)`.

        Args:
            maps: What `encode` gives.

        Returns:
            The output of the body, (N, channels[0], ...).
        """
        decoder = self.body[1]
        assert isinstance(decoder, ReversibleSequence)
        expected = [sum(pair) for pair in self._encoded]
        if [m.shape[1] for m in maps] != expected:
            raise ValueError(
                f"expected maps with {expected} channels, the skips from the top on and the "
                f"deepest map, not {[tuple(m.shape) for m in maps]}"
            )
        state: list[Tensor] = []
        for joined, sizes in reversed(list(zip(maps, self._encoded, strict=True))):
            state += joined.split(sizes, 1)
        return torch.cat(decoder(tuple(state)), 1)

    def inverse(self, z: Tensor) -> Tensor:
        """The input of the body from its output, (N, channels[0], ...), padding included."""
        x: Tensor = self.body.inverse(z)
        return x

    def extra_repr(self) -> str:
        return f"channels={self.channels}, depths={self.depths}, splits={self.splits}"

    def _padding(self, size: Sequence[int]) -> tuple[Stride, Stride]:
        """How much is missing before and after each axis."""
        missing = [-s % d for s, d in zip(size, self.divisor, strict=True)]
        if any(missing) and self.padding_mode is None:
            raise ValueError(
                f"images must divide by {self.divisor}, not be of size {tuple(size)}; resize or "
                'pad them, or give padding_mode="constant"'
            )
        return tuple(m // 2 for m in missing), tuple(m - m // 2 for m in missing)

    def _layers(
        self, block: Block, method: str, init: str | Tensor
    ) -> tuple[list[nn.Module], list[nn.Module]]:
        """The layers on the way down and on the way up."""
        encoder: list[nn.Module] = []
        decoder: list[nn.Module] = []
        self._encoded: list[Pair] = []  # channels by stream of what `encode` gives
        streams = _halves(self.channels[0])
        for level in range(len(self.depths)):
            down, up, streams = self._level(level, streams, block, method)
            encoder += down
            decoder = up + decoder
            if level == len(self.splits):
                break
            rests = _shared_out(self.splits[level][1], streams)
            skips = streams[0] - rests[0], streams[1] - rests[1]
            stride = self.strides[level]
            arguments = (sum(rests), self.spatial_dims, stride)
            options: dict[str, Any] = {"method": method, "init": init}
            encoder += [SplitSkip(channels=skips), OrthogonalDownsample(*arguments, **options)]
            decoder = [
                OrthogonalUpsample(*arguments, **options),
                JoinSkip(channels=skips),
                *decoder,
            ]
            self._encoded.append(skips)
            streams = rests[0] * math.prod(stride), rests[1] * math.prod(stride)
        self._encoded.append(streams)
        return encoder, decoder

    def _level(
        self, level: int, streams: Pair, block: Block, method: str
    ) -> tuple[list[nn.Module], list[nn.Module], Pair]:
        """The blocks of a level on the way down and up, and the streams between the two.

        Each coupling exchanges the streams. As many go up as down, so on the way up a level begins
        with the order in which it ended on the way down.
        """
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for i in range(1, self.depths[level] + 1):
            # On the way up, the block that mirrors this one sees the streams it gives back.
            down.append(AdditiveCoupling(block(streams[1], streams[0], self.spatial_dims)))
            streams = streams[1], streams[0]
            mirrored: list[nn.Module] = [
                AdditiveCoupling(block(streams[1], streams[0], self.spatial_dims))
            ]
            if self._mixes_after(level, i):
                down.append(ChannelMixing(sum(streams), method=method))
                mirrored.insert(0, ChannelMixing(sum(streams), method=method))
            up = mirrored + up
        return down, up, streams

    def _mixes_after(self, level: int, block: int) -> bool:
        if self._mixing_every == -1:
            return level < len(self.splits) and block == self.depths[level]
        return self._mixing_every > 0 and block % self._mixing_every == 0


def default_block(in_channels: int, out_channels: int, spatial_dims: int) -> nn.Module:
    """Two units of 3^d convolution, instance norm and leaky ReLU: the iUNet's own sub-network.

    Between the two units are as many channels as the wider stream has.
    """
    wider = max(in_channels, out_channels)
    layers: list[nn.Module] = []
    for before, after in ((in_channels, wider), (wider, out_channels)):
        conv = _CONV[spatial_dims - 1](before, after, 3, padding=1, bias=False)
        nn.init.kaiming_uniform_(conv.weight, a=0.01, mode="fan_out")
        layers += [conv, NormAct(after, "instance", "leaky_relu", slope=0.01, affine=True)]
    return nn.Sequential(*layers)


def _halves(total: int) -> Pair:
    """The streams that a `ReversibleSequence` makes of so many channels."""
    return (total + 1) // 2, total // 2


def _shared_out(total: int, streams: Pair) -> Pair:
    """So many channels taken from both streams, as evenly as they allow."""
    first = min(max((total + 1) // 2, total - streams[1]), streams[0])
    return first, total - first


def _feasible_splits(channels: Sequence[int], strides: Sequence[Stride]) -> tuple[Pair, ...]:
    """How many channels skip and how many go down, on each level but the deepest."""
    splits = []
    width = channels[0]
    for level, stride in enumerate(strides):
        block = math.prod(stride)
        ratio = channels[level + 1] / channels[level]
        skip = max(1, round(width * (block - ratio) / block))
        down = width - skip
        if down < 2:
            raise ValueError(
                f"channels={tuple(channels)} is infeasible: of the {width} channels of level "
                f"{level} with stride {stride}, {max(down, 0)} would go down, but at least 2 must, "
                f"one of each stream, and they make {2 * block} channels on level {level + 1}. Ask "
                f"for more channels, on level {level + 1} for {2 * block} or more"
            )
        splits.append((skip, down))
        width = down * block
    return tuple(splits)


def _widths_below(splits: Sequence[Pair], strides: Sequence[Stride]) -> tuple[int, ...]:
    return tuple(down * math.prod(s) for (_, down), s in zip(splits, strides, strict=True))


def _strides_by_level(
    strides: int | Sequence[int | Sequence[int]], count: int, spatial_dims: int
) -> tuple[Stride, ...]:
    by_level = (strides,) * count if isinstance(strides, int) else tuple(strides)
    full = tuple((s,) * spatial_dims if isinstance(s, int) else tuple(s) for s in by_level)
    if len(full) != count or any(
        len(s) != spatial_dims or min(s) < 1 or math.prod(s) < 2 for s in full
    ):
        raise ValueError(
            f"strides must be a number, or {count} entries (one less than there are levels), each "
            f"a number or {spatial_dims} of them, at least 1 and not all 1; not {strides!r}"
        )
    return full


def _refuse_unknown(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    mixing_every: int,
    padding_mode: str | None,
) -> None:
    if spatial_dims not in (1, 2, 3):
        raise ValueError(f"spatial_dims must be 1, 2 or 3, not {spatial_dims!r}")
    for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value!r}")
    if mixing_every < -1:
        raise ValueError(
            f"mixing_every must be -1 (once a level), 0 (never) or more, not {mixing_every!r}"
        )
    if padding_mode not in ("constant", "reflect", "replicate", "circular", None):
        raise ValueError(
            "padding_mode must be 'constant', 'reflect', 'replicate', 'circular' or None, not "
            f"{padding_mode!r}"
        )


def _refuse_wrong_levels(channels: Sequence[int], depths: Sequence[int]) -> None:
    refuse_wrong_channels(channels)
    if channels[0] < 2:
        raise ValueError(f"of the channels the first must be at least 2, not {channels!r}")
    if not are_positive(depths) or len(depths) != len(channels):
        raise ValueError(
            f"depths must be {len(channels)} positive numbers, one for each of channels, not "
            f"{depths!r}"
        )
