"""Networks that two processes train on half a batch each, and one on the whole."""

import torch
from torch import nn

from revgrad import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    ChannelMixing,
    HaarDownsample,
    HaarUpsample,
    Invertible1x1Conv,
    JoinSkip,
    ReversibleLayer,
    ReversibleSequence,
    SplitSkip,
    Tap,
)

# Of the body of `UNet`.
SCHEDULES = {
    "first stored": {0: "store"},
    "last stored": {8: "store", 7: "recompute"},
    "middle stored": {"3.0": "store", 4: "store", 5: "recompute"},
    "tapes between stored layers": {i: "store" for i in (0, 2, 4, 6, 8)},
    "inner sequence recomputed": {1: "recompute", 3: "recompute", 8: "recompute"},
    "all recomputed": "recompute",
    "all stored": "store",
}
EXACT_SCHEDULES = ("invert", {0: "store"}, {1: "store", 2: "recompute"}, "recompute", "store")
FLOW_SCHEDULES = ("invert", {0: "recompute", 2: "store"}, {3: "store", 5: "store"}, "recompute")


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


def train(model, optimizer=None, rank=None, steps=3):
    """Train on the halves of a process, or on whole batches."""
    optimizer = optimizer or optimizer_of(model)
    for step in range(steps):
        optimizer.zero_grad()
        loss(model(batch(step) if rank is None else half(step, rank))).backward()
        optimizer.step()


def trained_by_one(steps=3, **options):
    """The network after some steps of one process on whole batches, by ordinary autograd."""
    net = made(save_memory=False, **options)
    train(net, steps=steps)
    return net


def exact(**options):
    """In exact arithmetic, with dropout and batch norm."""
    torch.manual_seed(0)
    subs = [nn.Sequential(branch(4), nn.BatchNorm2d(4), nn.Dropout(0.3)) for _ in range(6)]
    layers = [AdditiveCoupling(f, g) for f, g in zip(subs[::2], subs[1::2], strict=True)]
    return ReversibleSequence(layers, arithmetic="exact", **options)


def exact_gradients(wrap, rank, **options):
    """Gradients and buffers of `exact` after two steps of a process on inputs of its own."""
    net = exact(**options)
    model = wrap(net)
    for step in range(2):
        torch.manual_seed(step + 10 * rank)
        model(torch.randn(2, 8, 6, 6)).square().mean().backward()
    return [p.grad for p in net.parameters()], list(net.buffers())


def flow(**options):
    """A normalising flow, started by a batch that all processes have."""

    def sub(channels):
        return nn.Sequential(nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.Tanh())

    torch.manual_seed(0)
    layers = [ActNorm(8), Invertible1x1Conv(8), AffineCoupling(sub(4), sub(4))]
    layers += [HaarDownsample(2), ActNorm(32), AffineCoupling(sub(16), scale="sigmoid")]
    net = ReversibleSequence(layers, **options).double()
    with torch.no_grad():
        net(pictures(9))
    return net


def pictures(step):
    """Inputs of `flow` of one step, for all processes together."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(4, 8, 6, 6, generator=generator, dtype=torch.float64)


def surprise(model, x):
    """The negative log-likelihood of samples, but for a constant; a mean over the batch."""
    z, logdet = model(x, logdet=True)
    return (z.square().flatten(1).sum(1) / 2 - logdet).mean()


def flow_gradients(wrap, rank=None, **options):
    """Gradients of `flow` after two steps: of a process on its half, or on whole batches."""
    net = flow(**options)
    model = wrap(net)
    for step in range(2):
        x = pictures(step)
        surprise(model, x if rank is None else x.chunk(2)[rank]).backward()
    return [p.grad for p in net.parameters()]


def flow_gradients_of_one():
    """By ordinary autograd."""
    return flow_gradients(lambda net: net, save_memory=False)


def expect_close(found, expected, tolerance=1e-12):
    """Lists of tensors, of which either may be missing at the same places."""
    found, expected = list(found), list(expected)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert (a - b).abs().max() <= tolerance * (1 + b.abs().max())


def expect_equal(found, expected):
    """To the bit."""
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


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
