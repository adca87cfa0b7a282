"""Flows, and their gradients, for the tests of layers with log-determinants."""

import torch
from torch import nn

from revgrad import (
    ActNorm,
    AffineCoupling,
    ChannelMixing,
    HaarDownsample,
    Invertible1x1Conv,
    PixelShuffleDownsample,
    ReversibleSequence,
)

DOUBLE = torch.float64


def sub(c_in, c_out=None, spatial_dims=2, hidden=6):
    """A sub-network that gives log-scale and shift for `c_out` channels."""
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[spatial_dims - 1]
    return nn.Sequential(
        kind(c_in, hidden, 3, padding=1), nn.Tanh(), kind(hidden, 2 * (c_out or c_in), 1)
    )


def glow(depth, channels=4, *, scale="tanh", one=False, spatial_dims=2, hidden=6):
    """Layers of `depth` steps of flow, each as in Glow; ActNorm already has its start."""
    layers = []
    for _ in range(depth):
        f, g = (sub(channels // 2, spatial_dims=spatial_dims, hidden=hidden) for _ in range(2))
        step = [ActNorm(channels), Invertible1x1Conv(channels)]
        layers += [*step, AffineCoupling(f, None if one else g, scale=scale)]
    for layer in layers:
        if isinstance(layer, ActNorm):
            nn.init.normal_(layer.log_scale, std=0.1)
            nn.init.normal_(layer.shift, std=0.1)
            layer.initialised.fill_(True)
    return layers


def calm(net, factor=0.2):
    """Shrink the last layers of the sub-networks, as flows start with them at zero (Glow).

    With PyTorch's usual start, 50 affine couplings take noise of size 1 to 1e7: not even the
    forward pass in float32 is then that of float64.
    """
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, AffineCoupling):
                for f in (module.f, module.g):
                    for p in () if f is None else f[-1].parameters():
                        p.mul_(factor)
    return net


def relative_errors(found, expected):
    """The largest relative error in the 2-norm of what are numbers among the results."""
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if a.is_floating_point()]
    return max(((a.double() - b.double()).norm() / b.double().norm()).item() for a, b in pairs)


def multi_scale(scale="tanh"):
    """Steps of flow on two scales, with layers of volume one between, of 4 channels."""
    return [
        *glow(1, scale=scale),
        HaarDownsample(2),
        *glow(1, 16, scale=scale, one=True),
        ChannelMixing(16, init="random"),
        PixelShuffleDownsample(2),
        *glow(1, 64, scale=scale),
    ]


def likelihood(y, logdet):
    """A function of both whose gradients differ from entry to entry."""
    weights = torch.linspace(1, 2, y.numel(), dtype=y.dtype).view_as(y)
    samples = torch.linspace(-1, 2, len(logdet), dtype=logdet.dtype)
    return (y.sin() * weights).sum() + (logdet.sin() * samples).sum() + logdet.square().sum() / 50


def gradients(net, x, *args, objective=likelihood, **kwargs):
    """Output, log-determinant and gradients of a training step, then the buffers after it."""
    net.zero_grad()
    leaves = [t.detach().clone().requires_grad_() for t in (x, *args)]
    torch.manual_seed(1)
    y, logdet, *_ = net(*leaves, logdet=True, **kwargs)
    objective(y, logdet).backward()
    found = [*(t.grad for t in leaves), *(p.grad for p in net.parameters())]
    return [y.detach(), logdet.detach(), *found, *net.buffers()]


def expect_same(net, x, *args, tolerance=1e-10, **kwargs):
    """The gradients with memory saved are those of ordinary autograd."""
    results = []
    for save_memory in (True, False):
        net.save_memory = save_memory
        found = gradients(net, x, *args, **kwargs)
        results.append([None if t is None else t.clone() for t in found])
    net.save_memory = True
    for saved, plain in zip(*results, strict=True):
        assert (saved is None) == (plain is None)
        if saved is not None:
            assert saved.dtype == plain.dtype
            scale = 1 + plain.double().abs().max()
            assert (saved.double() - plain.double()).abs().max() <= tolerance * scale


def jacobian_logdet(net, x):
    """ln |det| of the Jacobian of each sample, by `torch.func.jacrev` and an LU decomposition."""

    def one(sample):
        return net(sample[None])[0].flatten()

    jacobians = [torch.func.jacrev(one)(sample).flatten(1) for sample in x.detach()]
    return torch.stack([torch.linalg.slogdet(j)[1] for j in jacobians]).detach()


def sequence(layers, **options):
    """A sequence in float64."""
    return ReversibleSequence(layers, **options).double()
