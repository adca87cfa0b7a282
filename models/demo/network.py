"""A small U-Net whose body is one reversible sequence."""

from torch import Tensor, nn

from revgrad.nn import (
    AdditiveCoupling,
    HaarDownsample,
    HaarUpsample,
    JoinSkip,
    ReversibleSequence,
    SplitSkip,
)


class DemoNetwork(nn.Module):
    """Convolution, reversible U-Net, convolution: an image to a score for every class.

    Each level halves the resolution: half of the channels stay behind as the skip, the other
    half goes down with four times its channels, so a level has twice the channels of the one above.

    Args:
        channels: of the upper level, both streams together.
        levels: number of resolutions.
        couplings: per level, on the way down and again on the way up.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, classes, H, W)``; H and W divisible by ``stride``.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        channels: int = 32,
        levels: int = 3,
        couplings: int = 4,
    ) -> None:
        super().__init__()
        self.stride = 2 ** (levels - 1)
        self.stem = nn.Conv2d(in_channels, channels, kernel_size=3, padding=1)
        self.body = ReversibleSequence(_levels(channels // 2, levels, couplings))
        self.head = nn.Conv2d(channels, classes, kernel_size=1)

    @property
    def save_memory(self) -> bool:
        """Whether activations are recomputed in the backward pass instead of stored."""
        return self.body.save_memory

    @save_memory.setter
    def save_memory(self, value: bool) -> None:
        self.body.save_memory = value

    def forward(self, images: Tensor) -> Tensor:
        """Score the classes of every pixel."""
        return self.head(self.body(self.stem(images)))


def _levels(width: int, levels: int, couplings: int) -> list[nn.Module]:
    """The layers of a U-Net with ``levels`` levels and ``width`` channels per stream on top."""
    if levels == 1:
        return _couplings(width, couplings)
    return [
        *_couplings(width, couplings),
        SplitSkip(fraction=0.5),
        HaarDownsample(2),
        *_levels(2 * width, levels - 1, couplings),
        HaarUpsample(2),
        JoinSkip(),
        *_couplings(width, couplings),
    ]


def _couplings(width: int, count: int) -> list[nn.Module]:
    return [AdditiveCoupling(_branch(width), _branch(width)) for _ in range(count)]


def _branch(width: int) -> nn.Module:
    """What a coupling adds to one stream: ``(N, width, H, W)`` to the same shape."""
    return nn.Sequential(
        nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False),
        nn.GroupNorm(width // 4, width),
        nn.LeakyReLU(0.01),
    )
