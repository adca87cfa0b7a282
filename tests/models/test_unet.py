import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from revgrad.memory import measure
from revgrad.models import UNet
from revgrad.models.blocks import ConvStyle
from revgrad.models.unet import Encoder, UNetBody


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def conv(before, after, size=3):
    return size**2 * before * after + after


def rows(pairs):
    """Three convolutions for each pair of widths."""
    return sum(conv(a, b) + 2 * conv(b, b) for a, b in pairs)


def test_the_parameters_are_those_of_the_lidc_version():
    style = ConvStyle(2, norm=None)
    body = UNetBody(style, 1, (32, 64, 128, 192), 3, align_corners=True)
    assert parameters(body) == 2_260_128  # Knegt's code, measured
    down = [(1, 32), (32, 64), (64, 128), (128, 192)]
    up = [(192 + 128, 128), (128 + 64, 64), (64 + 32, 32)]
    assert parameters(body) == rows(down) + rows(up)


def test_a_batch_norm_adds_two_parameters_a_channel():
    plain, normed = (UNet(2, 1, 2, (4, 8), 3, norm=norm) for norm in (None, "batch"))
    assert parameters(normed) - parameters(plain) == 2 * 3 * (4 + 8 + 4)


@settings(max_examples=10, deadline=None)
@given(
    spatial_dims=st.sampled_from([2, 3]),
    channels=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    depth=st.integers(1, 2),
    factors=st.lists(st.integers(1, 2), min_size=3, max_size=3),
)
def test_features_have_the_size_and_width_of_their_level(spatial_dims, channels, depth, factors):
    net = UNet(spatial_dims, 1, 2, channels, depth, norm=None)
    assert net.divisor == 2 ** (len(channels) - 1)
    size = [net.divisor * factor for factor in factors[:spatial_dims]]
    maps = net.features(torch.randn(1, 1, *size))
    for level, (features, width) in enumerate(zip(maps, channels, strict=True)):
        assert features.shape == (1, width, *[s // 2**level for s in size])


def test_a_net_of_two_levels_is_its_formula():
    torch.manual_seed(0)
    net = UNet(2, 1, 2, (2, 3), 1, norm=None).double()
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    encoder, decoder = net.body.encoder.rows, net.body.decoder.rows
    top = encoder[0](x)
    deep = encoder[1](nn.AvgPool2d(2)(top))
    up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)(deep)
    expected = net.head(decoder[0](torch.cat([up, top], 1)))
    torch.testing.assert_close(net(x), expected)


def test_the_corners_of_the_upsampling():
    x = torch.randn(1, 1, 4, 4)
    outputs = []
    for align_corners in (False, True):
        torch.manual_seed(0)
        outputs.append(UNet(2, 1, 2, (2, 3), 1, norm=None, align_corners=align_corners)(x))
    assert not torch.allclose(*outputs)


def test_the_loss_is_summed_over_pixels_and_averaged_over_the_batch():
    net = UNet(2, 1, 3, (4, 4), 1, norm=None).double()
    image, masks = torch.randn(2, 1, 4, 6).double(), torch.randint(3, (2, 4, 6))
    log_probabilities = net(image).log_softmax(1)
    expected = sum(
        -log_probabilities[i, masks[i, y, x], y, x]
        for i in range(2)
        for y in range(4)
        for x in range(6)
    )
    torch.testing.assert_close(net.loss(image, masks).total, expected / 2)


def test_seven_levels_without_norm_pass_the_image_on():
    torch.manual_seed(0)
    net = UNet(2, 1, 2, (16,) * 7, 3, norm=None)
    # Two images of 2x2 blocks: what pooling leaves.
    images = torch.randn(2, 1, 2, 2).repeat_interleave(32, 2).repeat_interleave(32, 3)
    deepest = net.features(images)[-1]
    # At a size of one pixel padding leaves a ninth of each kernel; torch's start gives 1e-9 or 0.
    assert 1e-5 < (deepest[0] - deepest[1]).abs().max() < 1e2


def test_dropout_is_in_the_innermost_levels_and_in_training_only():
    net = UNet(2, 1, 2, (4, 4, 4, 4), 1, norm=None, dropout=0.5, dropout_levels=2)
    image = torch.randn(1, 1, 16, 16)
    seen = []
    for path, module in net.named_modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda *_, path=path: seen.append(path))
    net.features(image)
    assert seen == ["body.encoder.dropout"] * 2 + ["body.decoder.dropout"] * 2
    encoded = [net.body.encoder(image) for _ in range(2)]
    assert [torch.equal(*pair) for pair in zip(*encoded, strict=True)] == [True, True, False, False]
    net.eval()
    assert torch.equal(net(image), net(image))


def test_an_encoder_goes_on_from_any_level():
    encoder = Encoder(ConvStyle(2, norm=None), 1, (2, 3, 4), 1)
    x = torch.randn(1, 1, 8, 8)
    whole = encoder(x)
    first = encoder(x, 0, 2)
    for a, b in zip([*first, *encoder(first[-1], 2)], whole, strict=True):
        assert torch.equal(a, b)


def test_samples_are_held_once():
    samples = UNet(2, 1, 2, (4, 4), 1).sample(torch.randn(1, 1, 4, 4), 5)
    assert samples.shape == (1, 5, 2, 4, 4)
    assert samples.untyped_storage().nbytes() == math.prod((1, 2, 4, 4)) * 4


def test_reversible_rows_have_half_the_weights():
    plain, reversible = (UNet(2, 8, 2, (8,), 3, reversible=r, bias=False) for r in (False, True))
    weights = [
        sum(p.numel() for p in net.body.parameters() if p.dim() > 1) for net in (plain, reversible)
    ]
    assert weights[0] == 2 * weights[1]


def test_what_a_reversible_net_keeps_does_not_grow_with_its_depth():
    kept = {}
    for reversible in (False, True):
        for depth in (2, 6):
            net = UNet(2, 1, 2, (8, 8), depth, norm=None, reversible=reversible)
            image, masks = torch.randn(2, 1, 32, 32), torch.zeros(2, 32, 32, dtype=torch.int64)
            report = measure(lambda: net(image, masks).total.backward(), net)  # noqa: B023
            kept[reversible, depth] = report.kept_for_backward
    assert kept[True, 6] == kept[True, 2] < kept[False, 6] / 2
    # Four more units on both sides of the finest level alone: one map of 64 KiB each, at least.
    assert kept[False, 6] - kept[False, 2] > 8 * 2 * 8 * 32 * 32 * 4


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"channels": ()}, "one positive number for each level"),
        ({"channels": (4, 0)}, "one positive number for each level"),
        ({"channels": (4, 4), "depth": 0}, "at least 1, not 0"),
        ({"channels": (4, 4), "dropout": 1.5}, "dropout"),
        ({"channels": (4, 4), "norm": "spectral"}, "norm must be"),
        ({"channels": (4, 3), "reversible": True}, "3 channels"),
        ({"dropout": 0.5, "dropout_levels": -1}, "dropout_levels must not be negative"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        UNet(2, 1, 2, **options)
