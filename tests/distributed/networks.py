"""Networks that two processes train on half a batch each, and one on the whole."""

import torch
from torch import nn

from revgrad import (
    AdditiveCoupling,
    ChannelMixing,
    HaarDownsample,
    HaarUpsample,
    JoinSkip,
    ReversibleLayer,
    ReversibleSequence,
    SplitSkip,
    Tap,
)


def branch(channels):
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.InstanceNorm2d(channels, affine=True),
        nn.SiLU(),
    )


class Scaled(ReversibleLayer):
    """Has a parameter of its own and no step back: it is inverted, then run forward again."""

    def __init__(self, f):
        super().__init__()
        self.f, self.scale = f, nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x1, x2):
        return x1 + self.scale * self.run(self.f, x2), x2

    def inverse(self, y1, y2):
        return y1 - self.scale * self.run(self.f, y2), y2


class UNet(nn.Module):
    """A reversible U-Net between two ordinary layers, with a tap."""

    def __init__(self, **options):
        super().__init__()
        self.enter = nn.Conv2d(3, 8, 1)
        layers = [
            AdditiveCoupling(branch(4), branch(4)),
            SplitSkip(),
            HaarDownsample(2),
            ReversibleSequence([AdditiveCoupling(branch(8)), ChannelMixing(16)]),
            Tap("coarse", nn.Conv2d(16, 2, 1)),
            HaarUpsample(2),
            JoinSkip(),
            Scaled(branch(4)),
            AdditiveCoupling(branch(4), branch(4)),
        ]
        self.body = ReversibleSequence(layers, **options)
        self.leave = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        y, taps = self.body(self.enter(x))
        return self.leave(y), taps["coarse"]


def made(**options):
    """The same weights in every process."""
    torch.manual_seed(0)
    return UNet(**options).double()


def loss(outputs):
    """A mean over the batch, so that the mean over processes is that of the whole batch."""
    y, coarse = outputs
    return y.square().mean() + coarse.sin().mean()


def batch(step):
    """Inputs of one step, for all processes together."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(4, 3, 8, 8, generator=generator, dtype=torch.float64)


def half(step, rank):
    """The part of a process."""
    return batch(step).chunk(2)[rank]


def optimizer_of(net):
    return torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)


def trained_by_one(steps=3, **options):
    """The network after some steps of one process on whole batches, by ordinary autograd."""
    net = made(save_memory=False, **options)
    optimizer = optimizer_of(net)
    for step in range(steps):
        optimizer.zero_grad()
        loss(net(batch(step))).backward()
        optimizer.step()
    return net


def expect_close(found, expected, tolerance=1e-12):
    """Lists of tensors, of which either may be missing at the same places."""
    found, expected = list(found), list(expected)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert (a - b).abs().max() <= tolerance * (1 + b.abs().max())


def expect_raises(kind, words, call):
    """Both processes must be refused, before they wait for each other."""
    try:
        call()
    except kind as error:
        text = str(error)
        for word in words:
            assert word in text, f"{word!r} is not in: {text}"
        return
    raise AssertionError(f"no {kind.__name__} was raised")
