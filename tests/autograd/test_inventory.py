"""Modules that may draw random numbers are known as such, whoever draws them."""

import pytest
import torch
from torch import nn

from revgrad import AdditiveCoupling, ReversibleSequence
from revgrad.autograd.inventory import Inventory, may_misread_gradients
from revgrad.errors import ReversibleError


def noisy(*_):
    return torch.randn(1, 3, 1)


def plain():
    return nn.Sequential(nn.Conv1d(3, 3, 3, padding=1), nn.GroupNorm(1, 3), nn.SiLU())


def with_hook(f):
    f[0].register_forward_hook(lambda _, __, y: y + noisy())
    return f


def with_hook_before(f):
    f[1].register_forward_pre_hook(lambda _, args: args[0] + noisy())
    return f


def with_replaced_forward(f):
    forward = f[2].forward
    f[2].forward = lambda x: forward(x) + noisy()
    return f


def with_subclass(f):
    class Noise(nn.SiLU):
        def forward(self, x):
            return super().forward(x) + noisy()

    f[2] = Noise()
    return f


def with_parametrization(f):
    class Noise(nn.Module):
        def forward(self, weight):
            return weight + 0.1 * torch.randn_like(weight)

    nn.utils.parametrize.register_parametrization(f[0], "weight", Noise())
    return f


DRAWING = [with_hook, with_hook_before, with_replaced_forward, with_subclass, with_parametrization]


def gradients(net, x):
    torch.manual_seed(1)
    net.zero_grad()
    net(x).square().sum().backward()
    return [p.grad.clone() for p in net.parameters()]


def is_repeated(f):
    net, x = ReversibleSequence([AdditiveCoupling(f)]).double(), torch.randn(2, 6, 8).double()
    recomputed = gradients(net, x)
    net.save_memory = False
    stored = gradients(net, x)
    return all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(recomputed, stored, strict=True))


@pytest.mark.parametrize("change", DRAWING)
def test_random_numbers_are_repeated(change):
    f = change(plain())
    assert Inventory(f).may_draw
    assert is_repeated(f)


def test_global_hooks_may_draw():
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, _, y: y + noisy() if isinstance(module, nn.SiLU) else None
    )
    try:
        assert is_repeated(plain())
    finally:
        handle.remove()


def test_common_modules_draw_nothing():
    assert not Inventory(plain()).may_draw
    assert Inventory(nn.Sequential(plain(), nn.Dropout(0.1))).may_draw
    assert Inventory(nn.RReLU()).may_draw


def test_what_else_is_known():
    net = nn.Sequential(nn.LSTM(2, 2), nn.MultiheadAttention(2, 1))
    inventory = Inventory(net)
    assert inventory.has_lstm and inventory.has_attention
    assert not Inventory(plain()).has_lstm and not Inventory(plain()).has_attention
    inventory.set_training([False, True, *[False] * (len(inventory.named) - 2)])
    assert net[0].training and not net.training


IMAGES = [
    nn.Conv2d(4, 4, 3, padding=1),
    nn.ConvTranspose2d(4, 4, 3, padding=1),
    nn.BatchNorm2d(4),
    nn.BatchNorm2d(4).eval(),
    nn.GroupNorm(2, 4),
    nn.GroupNorm(4, 4),
    nn.LayerNorm(6),
    nn.AvgPool2d(3, 1, 1),
    nn.MaxPool2d(3, 1, 1),
    nn.Identity(),
    nn.ReLU(),
    nn.LeakyReLU(),
    nn.PReLU(4),
    nn.ELU(),
    nn.GELU(),
    nn.SiLU(),
    nn.Mish(),
    nn.Sigmoid(),
    nn.Tanh(),
    nn.Softplus(),
]


@pytest.mark.parametrize("f", IMAGES, ids=lambda f: type(f).__name__)
@pytest.mark.parametrize("image_last", [False, True])
def test_known_modules_read_gradients_in_any_format(f, image_last):
    """For a batch of one, where instance norm does not; then `gradient_strides` says contiguous."""
    assert not may_misread_gradients(f)
    torch.manual_seed(0)
    f = f.double()
    x = torch.randn(1, 4, 6, 6).double()
    if image_last:
        x = x.contiguous(memory_format=torch.channels_last)
    dy = torch.randn(1, 4, 6, 6).double()
    found = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        leaf = x.detach().requires_grad_()
        f.zero_grad()
        f(leaf).backward(dy.contiguous(memory_format=memory_format))
        found.append([leaf.grad, *(p.grad for p in f.parameters())])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_instance_norm_and_unknown_modules_might_misread():
    assert may_misread_gradients(nn.Sequential(nn.Conv2d(1, 1, 1), nn.InstanceNorm2d(1)))
    assert may_misread_gradients(nn.Bilinear(2, 2, 2))
    assert not may_misread_gradients(ReversibleSequence([AdditiveCoupling(plain())]))
    hooked = nn.Sequential(nn.Conv2d(1, 1, 1))
    hooked[0].register_forward_hook(lambda _, __, y: nn.functional.instance_norm(y))
    assert may_misread_gradients(hooked)


def test_layers_with_a_call_of_their_own_are_watched():
    class Doubling(AdditiveCoupling):
        def __call__(self, *args, **kwargs):
            return tuple(2 * t for t in super().__call__(*args, **kwargs))

    net = ReversibleSequence([Doubling(nn.Conv1d(3, 3, 1))])
    with pytest.raises(ReversibleError, match="changed the output of this reversible layer"):
        net(torch.randn(2, 6, 8))
