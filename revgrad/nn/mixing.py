"""Learnable orthogonal mixing of channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from revgrad.autograd.layout import split_dense
from revgrad.autograd.protocol import Gradients, State
from revgrad.autograd.rewind import Rewind
from revgrad.dataless import without_autocast
from revgrad.errors import ReversibleError
from revgrad.nn.layer import ReversibleLayer
from revgrad.nn.orthogonal import OrthogonalMatrices, block_transform


class ChannelMixing(ReversibleLayer):
    """Multiplies the channels of both streams together by one learnable orthogonal matrix.

    An invertible 1x1 convolution (Glow, Kingma and Dhariwal 2018) whose inverse is its transpose
    (iUNet, Etmann, Ke and Schönlieb 2020). In exact arithmetic its input is stored.

    Args:
        channels: Channels of both streams together, C.
        method: How the matrix is made of free parameters, see `OrthogonalMatrices`.
        init: "identity", "random", or an orthogonal matrix (C, C).

    Shapes:
        Each stream keeps its shape.
    """

    def __init__(
        self, channels: int, *, method: str = "exp", init: str | Tensor = "identity"
    ) -> None:
        super().__init__()
        if isinstance(init, str) and init not in ("identity", "random"):
            raise ValueError(f"init must be a tensor, 'identity' or 'random', not {init!r}")
        start = "pixel_shuffle" if isinstance(init, str) and init == "identity" else init
        self.channels = channels
        self.matrices = OrthogonalMatrices(block_transform(start, (channels,), 1), method)

    def forward(self, x1: Tensor, x2: Tensor, *args: Any, **kwargs: Any) -> State:
        """Mix."""
        return self._mixed(self.matrices()[0], (x1, x2))

    def inverse(self, y1: Tensor, y2: Tensor, *args: Any, **kwargs: Any) -> State:
        """Mix by the transposed matrix."""
        return self._mixed(self.matrices()[0].mT, (y1, y2))

    def backward_step(
        self, rewind: Rewind, outputs: State, grads: Gradients, *args: Any, **kwargs: Any
    ) -> tuple[State, Gradients]:
        """Invert the streams and their gradients alike."""
        weight = rewind.weight(self.matrices)
        back = weight.value[0].mT
        inputs = self._mixed(back, outputs)
        filled = rewind.filled(outputs, grads)
        if filled is None:
            return inputs, (None,) * len(inputs)
        if weight.needs_grad:
            x, dy = (torch.cat(t, 1).flatten(2).to(back.dtype) for t in (inputs, filled))
            weight.book(torch.einsum("ncp,nkp->ck", dy, x)[None])
            del x, dy  # two activations, not to be held while the gradients are mixed
        return inputs, self._mixed(back, filled)

    def extra_repr(self) -> str:
        return f"channels={self.channels}"

    def _mixed(self, matrix: Tensor, streams: State) -> State:
        sizes = [x.shape[1] for x in streams]
        if sum(sizes) != self.channels:
            raise ReversibleError(
                f"made for {self.channels} channels, but the streams have "
                f"{' + '.join(map(str, sizes))}"
            )
        joined = torch.cat(streams, 1)
        with without_autocast(joined.device):
            wide = torch.promote_types(joined.dtype, matrix.dtype)
            weight = matrix.to(wide)[(...,) + (None,) * (joined.dim() - 2)]
            mixed = torch.convolution(
                joined.to(wide), weight, None, *_ONES[joined.dim() - 2], groups=1
            ).to(joined.dtype)
        return tuple(split_dense(mixed, sizes, 1))


# stride, padding, dilation, transposed and output padding of a 1x1 convolution by number of axes
_ONES = {d: ((1,) * d, (0,) * d, (1,) * d, False, (0,) * d) for d in (1, 2, 3)}
