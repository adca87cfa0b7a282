"""Skip connections of a U-Net inside one reversible sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from revgrad.autograd.inventory import known
from revgrad.autograd.layout import split_dense
from revgrad.autograd.protocol import State
from revgrad.errors import ReversibleError
from revgrad.nn.layer import IsometricLayer


class _Skip(IsometricLayer):
    """What the two ends of a skip connection share.

    Args:
        fraction: Share of each stream's channels that skips, rounded down; at least one channel
            of each stream skips and at least one goes on. The same at both ends.
        channels: Instead of the fraction, how many channels of each stream skip, as at the other
            end.
    """

    def __init__(self, fraction: float = 0.5, *, channels: tuple[int, int] | None = None) -> None:
        super().__init__()
        if not 0 < fraction < 1:
            raise ValueError(f"fraction must lie between 0 and 1, not {fraction!r}")
        if channels is not None and (len(channels) != 2 or min(channels) < 0):
            raise ValueError(
                "channels must be the numbers of skipping channels of the two streams, such as "
                f"(2, 1), or None, not {channels!r}"
            )
        self.fraction = fraction
        self.channels = None if channels is None else tuple(channels)

    def extra_repr(self) -> str:
        if self.channels is not None:
            return f"channels={self.channels}"
        return f"fraction={self.fraction}"

    def _split(self, *streams: Tensor, copy: bool = True) -> State:
        """The rest of each stream, then the skip of each."""
        pairs = []
        for i, x in enumerate(streams):
            skip = self._skipping(i, x.shape[1])
            if x.shape[1] <= skip:
                raise ReversibleError(
                    f"stream {i + 1} with {x.shape[1]} channel{'s' * (x.shape[1] != 1)} can't be "
                    f"split into a skip of {skip} and a rest"
                )
            # Copies: as views, skips would keep the whole stream in memory until they are joined.
            sizes = [skip, x.shape[1] - skip]
            pairs.append(split_dense(x, sizes, 1, copy=True) if copy else x.split(sizes, 1))
        return *(rest for _, rest in pairs), *(skip for skip, _ in pairs)

    def _join(self, x1: Tensor, x2: Tensor, skip1: Tensor, skip2: Tensor) -> State:
        return torch.cat((skip1, x1), 1), torch.cat((skip2, x2), 1)

    def _skipping(self, i: int, channels: int) -> int:
        """How many of the channels of stream `i` skip."""
        if self.channels is not None:
            return self.channels[i]
        return max(min(int(channels * self.fraction), channels - 1), 1)


@known
class SplitSkip(_Skip):
    """Takes the first channels of each stream out as a skip connection.

    The skip waits in the sequence's state until the `JoinSkip` of the same level puts it back:
    the last one split is the first one joined.

    Args:
        fraction: Share of each stream's channels that skips, rounded down; at least one channel
            of each stream skips and at least one goes on.
        channels: Instead of the fraction, how many channels of each stream skip. Of one stream it
            may be none; at least one channel of each goes on.

    Shapes:
        (N, C1, ...), (N, C2, ...) to the two streams that go on and the two skips.
    """

    num_outputs = 4
    exact = True

    def forward(self, x1: Tensor, x2: Tensor, *args: Any, **kwargs: Any) -> State:
        """Split each stream along its channels."""
        return self._split(x1, x2)

    def inverse(
        self, y1: Tensor, y2: Tensor, skip1: Tensor, skip2: Tensor, *args: Any, **kwargs: Any
    ) -> State:
        """Put the skips back in front of the streams' channels."""
        return self._join(y1, y2, skip1, skip2)

    def out_channels(self, channels: tuple[int, ...]) -> tuple[int, ...]:
        """What goes on of each stream, then what skips."""
        skips = [self._skipping(i, c) for i, c in enumerate(channels)]
        return *(c - s for c, s in zip(channels, skips, strict=True)), *skips


@known
class JoinSkip(_Skip):
    """Puts the skip of the last open `SplitSkip` back in front of the streams' channels.

    Args:
        fraction: As at the `SplitSkip`: its inverse has to find the border again.
        channels: As at the `SplitSkip`, in the order that the streams have here.

    Shapes:
        The two streams and the two skips to (N, C1, ...), (N, C2, ...).
    """

    num_inputs = 4
    exact = True

    def forward(
        self, x1: Tensor, x2: Tensor, skip1: Tensor, skip2: Tensor, *args: Any, **kwargs: Any
    ) -> State:
        """Join each skip with its stream along the channels."""
        self._check(0, x1, skip1)
        self._check(1, x2, skip2)
        return self._join(x1, x2, skip1, skip2)

    def inverse(self, y1: Tensor, y2: Tensor, *args: Any, **kwargs: Any) -> State:
        """Split the skips off again."""
        return self._split(y1, y2)

    def inverse_of_gradients(self, *grads: Tensor) -> State:
        """Parts of the gradients, without another copy of both."""
        return self._split(*grads, copy=False)

    def out_channels(self, channels: tuple[int, ...]) -> tuple[int, ...]:
        """Each stream and its skip together."""
        x1, x2, skip1, skip2 = channels
        return x1 + skip1, x2 + skip2

    def _check(self, i: int, x: Tensor, skip: Tensor) -> None:
        if x.shape[:1] + x.shape[2:] != skip.shape[:1] + skip.shape[2:]:
            raise ReversibleError(
                f"the skip of shape {tuple(skip.shape)} does not fit the stream of shape "
                f"{tuple(x.shape)}; is the upsampling missing?"
            )
        together = x.shape[1] + skip.shape[1]
        expected = self._skipping(i, together)
        if skip.shape[1] != expected:
            raise ReversibleError(
                f"the skip has {skip.shape[1]} of {together} channels, but {self.extra_repr()} "
                f"makes it {expected}; give SplitSkip and JoinSkip the same fraction or channels, "
                "and bring as many channels up as went down"
            )
