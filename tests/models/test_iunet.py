"""The iUNet, against the figures of its authors and against ordinary autograd."""

import copy

import pytest
import torch
from torch import nn

from revgrad import AdditiveCoupling, ChannelMixing
from revgrad.memory import measure
from revgrad.models import iUNet

DOUBLE = torch.float64

# name: arguments and the size of an image, small, with equal and unequal streams
NETS = {
    "1d": ((1, 2, 3, (4, 8, 16), (2, 1, 2)), (16,)),
    "2d": ((2, 1, 2, (4, 8, 12), (1, 2, 1)), (8, 12)),
    "2d odd": ((2, 3, 2, (7, 9, 13), (1, 1, 2)), (8, 8)),
    "3d": ((3, 1, 2, (8, 16), (2, 1)), (4, 6, 4)),
    "3d odd": ((3, 1, 2, (11, 22), (1, 1)), (4, 4, 4)),
    "one level": ((2, 1, 2, (5,), (3,)), (5, 7)),
}
BY_NAME = pytest.mark.parametrize("name", NETS)


def made(name, **options):
    """A small network whose matrices are not those that it begins with, and an image."""
    torch.manual_seed(0)
    arguments, size = NETS[name]
    net = moved(iUNet(*arguments, **options).double())
    return net, torch.randn(2, arguments[1], *size, dtype=DOUBLE)


def moved(net):
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def body_input(net, name):
    return torch.randn(2, net.channels[0], *NETS[name][1], dtype=DOUBLE)


def gradients(net, x, save_memory):
    net.save_memory = save_memory
    net.zero_grad()
    x = x.clone().requires_grad_()
    y = net(x)
    (y.sin() * torch.linspace(1, 2, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in net.parameters())]


# --- architecture -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spatial_dims", "requested", "real", "splits"),
    [
        (1, (4, 8, 16), (4, 6, 10), ((1, 3), (1, 5))),
        (2, (64, 128, 256, 384), (64, 128, 256, 384), ((32, 32), (64, 64), (160, 96))),
        (3, (32, 64, 128, 256), (32, 64, 128, 256), ((24, 8), (48, 16), (96, 32))),
    ],
)
def test_widths_are_the_closest_feasible_ones(spatial_dims, requested, real, splits):
    small = lambda c_in, c_out, d: nn.Identity()  # noqa: E731
    depths = (1,) * len(requested)
    net = iUNet(spatial_dims, 1, 2, requested, depths, block=small, mixing_every=0)
    assert net.channels == real
    assert net.splits == splits


@pytest.mark.parametrize(
    ("spatial_dims", "channels", "published"),
    [(2, (64, 128, 256, 384), 4_387_328), (3, (32, 64, 128, 256), 4_754_176)],
)
def test_as_many_parameters_as_published(spatial_dims, channels, published):
    """Of the authors' library, whose body has n * n parameters for an orthogonal matrix.

    Here they are the n * (n - 1) / 2 that the matrix has degrees of freedom.
    """
    body = iUNet(spatial_dims, 1, 2, channels, (2, 2, 2, 2)).body
    others = sum(p.numel() for name, p in body.named_parameters() if not name.endswith("theta"))
    starts = [b for name, b in body.named_buffers() if name.endswith("start")]
    assert others + sum(start.numel() for start in starts) == published
    ours = sum(p.numel() for p in body.parameters())
    assert ours == others + sum(s.shape[0] * s.shape[1] * (s.shape[1] - 1) // 2 for s in starts)


@pytest.mark.parametrize(
    ("every", "encoder", "decoder"),
    [
        (0, "ccc/ccc", "ccc/ccc"),
        (-1, "cccm/ccc", "ccc/mccc"),
        (1, "cmcmcm/cmcmcm", "mcmcmc/mcmcmc"),
        (2, "ccmc/ccmc", "cmcc/cmcc"),
    ],
)
def test_places_of_the_mixing(every, encoder, decoder):
    net = iUNet(2, 1, 2, (4, 8), (3, 3), mixing_every=every)
    letters = {AdditiveCoupling: "c", ChannelMixing: "m"}
    for sequence, expected in zip(net.body, (encoder, decoder), strict=True):
        found = "".join(letters.get(type(layer), "/") for layer in sequence)
        assert found.replace("//", "/") == expected


@pytest.mark.parametrize(
    ("strides", "divisor"), [(((1, 2), 2), (2, 4)), ((3, (1, 2)), (3, 6)), (4, (16, 16))]
)
@pytest.mark.parametrize("init", ["random", "pixel_shuffle"])
def test_strides_by_level_and_axis(strides, divisor, init):
    net = iUNet(2, 1, 2, (8, 32, 64), (1, 1, 1), strides=strides, init=init).double()
    assert net.divisor == divisor
    x = torch.randn(1, 8, *(2 * d for d in divisor), dtype=DOUBLE)
    assert (net.inverse(net.body(x)) - x).abs().max() < 1e-10
    assert net(torch.randn(1, 1, 19, 21, dtype=DOUBLE)).shape == (1, 2, 19, 21)


def test_own_blocks_see_one_stream_and_give_the_other():
    asked = []

    def block(c_in, c_out, spatial_dims):
        asked.append((c_in, c_out, spatial_dims))
        return nn.Conv1d(c_in, c_out, 1)

    net = iUNet(1, 1, 2, (5, 10), (2, 1), block=block)
    assert net.splits == ((1, 4),)
    # 3 + 2 channels on top, of which 2 + 2 go down
    assert sorted(asked) == [(2, 3, 1)] * 2 + [(3, 2, 1)] * 2 + [(4, 4, 1)] * 2
    assert net(torch.randn(1, 1, 8)).shape == (1, 2, 8)


# --- the function -------------------------------------------------------------------------------


@BY_NAME
@pytest.mark.parametrize("method", ["exp", "householder"])
def test_body_is_a_bijection(name, method):
    net, _ = made(name, method=method)
    x = body_input(net, name)
    y = net.body(x)
    assert y.shape == x.shape
    assert (y - x).abs().max() > 0.1
    assert (net.inverse(y) - x).abs().max() < 1e-10


@BY_NAME
@pytest.mark.parametrize("arithmetic", ["float", "exact"])
def test_encode_and_decode_are_the_body(name, arithmetic):
    net, _ = made(name, arithmetic=arithmetic)
    x = body_input(net, name)
    maps = net.encode(x)
    assert [m.shape[1] for m in maps] == [*(skip for skip, _ in net.splits), net.channels[-1]]
    assert sum(m.numel() for m in maps) == x.numel()
    assert torch.equal(net.decode(maps), net.body(x))


@BY_NAME
@pytest.mark.parametrize("mixing_every", [-1, 1])
def test_gradients_are_those_of_ordinary_autograd(name, mixing_every):
    net, x = made(name, mixing_every=mixing_every)
    results = [gradients(net, x, save_memory) for save_memory in (True, False)]
    for saved, plain in zip(*results, strict=True):
        assert (saved - plain).abs().max() < 1e-9 * max(1, plain.abs().max())


@BY_NAME
def test_exact_arithmetic_gives_them_to_the_bit(name):
    net, x = made(name, arithmetic="exact")
    results = [gradients(net, x, save_memory) for save_memory in (True, False)]
    for saved, plain in zip(*results, strict=True):
        assert torch.equal(saved, plain)


def test_exact_arithmetic_under_autocast_and_in_channels_last():
    torch.manual_seed(0)
    net = moved(iUNet(2, 1, 2, (4, 8, 16), (2, 2, 2), arithmetic="exact"))
    net = net.to(memory_format=torch.channels_last)
    x = torch.randn(2, 1, 14, 16).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        results = [gradients(net, x, save_memory) for save_memory in (True, False)]
    for saved, plain in zip(*results, strict=True):
        assert torch.equal(saved, plain)


def test_gradients_through_encode():
    net, _ = made("2d odd")
    x = body_input(net, "2d odd").requires_grad_()
    results = []
    for net.save_memory in (True, False):
        loss = sum((i + 1) * m.square().sum() for i, m in enumerate(net.encode(x)))
        results.append(torch.autograd.grad(loss, x)[0])
    assert (results[0] - results[1]).abs().max() < 1e-9


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
def test_odd_sizes_are_padded_and_cropped(mode):
    net, _ = made("2d", padding_mode=mode)
    x = torch.randn(2, 1, 13, 18, dtype=DOUBLE, requires_grad=True)
    y = net(x)
    assert y.shape == (2, 2, 13, 18)
    y.square().sum().backward()
    assert x.grad.abs().min() > 0
    padded = nn.functional.pad(net.stem(x), (1, 1, 1, 2), mode=mode)
    assert torch.equal(y, net.head(net.body(padded)[:, :, 1:-2, 1:-1]))


def test_sizes_that_divide_are_not_padded():
    net, x = made("2d", padding_mode=None)
    assert torch.equal(net(x), net.head(net.body(net.stem(x))))
    with pytest.raises(ValueError, match=r"must divide by \(4, 4\).*\(7, 8\)"):
        net(x[:, :, :7, :8])


def test_memory_does_not_grow_with_depth():
    """From two blocks a level on, so that each kind of layer stands beside each other kind."""
    above = {}
    for save_memory in (True, False):
        for depth in (2, 6):
            net = iUNet(2, 1, 2, (8, 16), (depth, depth), save_memory=save_memory)
            x = torch.randn(1, 1, 64, 64)
            report = measure(lambda: net(x).sum().backward(), net)  # noqa: B023
            above[save_memory, depth] = report.peak_without_scratch - sum(
                2 * p.numel() * p.element_size() for p in net.parameters()
            )
    stream = 4 * 4 * 64 * 64
    assert above[True, 6] - above[True, 2] < 0.1 * stream
    assert above[False, 6] - above[False, 2] > 20 * stream


def test_state_dict_round_trip():
    net, x = made("2d odd")
    other = iUNet(*NETS["2d odd"][0]).double()
    assert not torch.equal(other(x), net(x))
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), net(x))
    assert torch.equal(copy.deepcopy(net)(x), net(x))


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"spatial_dims": 4}, "spatial_dims must be 1, 2 or 3, not 4"),
        ({"in_channels": 0}, "in_channels must be at least 1"),
        ({"depths": (1, 1, 1)}, r"depths must be 2 positive numbers.*\(1, 1, 1\)"),
        ({"depths": (1, 0)}, "depths must be 2 positive"),
        ({"channels": ()}, "channels must be one positive number for each level"),
        ({"channels": (1, 8)}, "the first must be at least 2"),
        ({"channels": 8}, "channels must be one positive number for each level.*not 8"),
        ({"depths": 2}, "depths must be 2 positive numbers.*not 2"),
        ({"channels": (2, 8)}, r"infeasible: of the 2 channels of level 0.*1 would go down"),
        ({"channels": (16, 4)}, "infeasible.*1 would go down.*level 1 for 8 or more"),
        ({"channels": (16, 1)}, "infeasible.*0 would go down"),
        ({"strides": (2, 2)}, r"strides must be a number, or 1 entries.*not \(2, 2\)"),
        ({"strides": ((2, 2, 2),)}, "2 of them"),
        ({"strides": 1}, "not all 1"),
        ({"mixing_every": -2}, "mixing_every must be"),
        ({"padding_mode": "zeros"}, "padding_mode must be"),
        ({"method": "svd"}, "method must be one of"),
        ({"arithmetic": "double"}, "arithmetic"),
    ],
)
def test_construction_errors(changed, message):
    arguments = {
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 2,
        "channels": (4, 8),
        "depths": (1, 1),
    }
    with pytest.raises(ValueError, match=message):
        iUNet(**{**arguments, **changed})


def test_errors_of_inputs():
    net, x = made("2d")
    with pytest.raises(ValueError, match=r"2 spatial axes.*\(1, 8, 12\)"):
        net(x[0])
    with pytest.raises(ValueError, match=r"expected \(N, 4, ...\)"):
        net.encode(x)
    with pytest.raises(ValueError, match=r"maps with \[2, 5, 12\] channels"):
        net.decode([x])
