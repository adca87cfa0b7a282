"""The same promises on a GPU: random numbers, autocast, memory. Skipped where there is none."""

import copy

import pytest
import torch
from torch import nn

from revgrad import AdditiveCoupling, HaarDownsample, HaarUpsample, ReversibleSequence
from revgrad.memory import measure

pytestmark = pytest.mark.cuda


def branch(channels):
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.SiLU(),
        nn.Dropout(0.3),
    )


def network():
    torch.manual_seed(0)
    layers = [AdditiveCoupling(branch(8), branch(8)), HaarDownsample(2)]
    layers += [AdditiveCoupling(branch(32)), HaarUpsample(2), AdditiveCoupling(branch(8))]
    return ReversibleSequence(layers).cuda()


def step(net, x, **autocast):
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    with torch.autocast("cuda", enabled=bool(autocast), **autocast):
        y = net(x)
    y.double().sin().sum().backward()
    after = torch.rand(4, device="cuda")
    return [y.detach(), x.grad, *(p.grad for p in net.parameters()), *net.buffers(), after]


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_dropout_batch_norm_and_autocast(dtype, memory_format):
    x = torch.randn(2, 16, 32, 32, device="cuda").contiguous(memory_format=memory_format)
    reversible = network().to(memory_format=memory_format)
    plain = copy.deepcopy(reversible)
    plain.save_memory = False
    autocast = {} if dtype is None else {"dtype": dtype}
    expected, found = step(plain, x, **autocast), step(reversible, x, **autocast)
    tolerance = 1e-4 if dtype is None else 2e-2
    for a, b in zip(expected, found, strict=True):
        assert (a.double() - b.double()).norm() <= tolerance * (1 + a.double().norm())


def test_memory_does_not_grow_with_depth():
    activation = 64 * 256 * 256 * 4
    peaks = []
    for depth in (4, 16):
        layers = [AdditiveCoupling(nn.Conv2d(32, 32, 3, padding=1)) for _ in range(depth)]
        net = ReversibleSequence(layers).cuda()
        x = torch.randn(1, 64, 256, 256, device="cuda", requires_grad=True)
        report = measure(lambda n=net, x=x: n(x).sum().backward(), net)
        peaks.append(report.peak - report.parameters - report.gradients)
    assert abs(peaks[1] - peaks[0]) < activation / 8
