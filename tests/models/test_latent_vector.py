import pytest
import torch
import torch.nn.functional as F

from revgrad.models.blocks import ConvStyle
from revgrad.models.latent_vector import Combination, VectorEncoder

STYLE = ConvStyle(2, norm=None)


def encoder(**options):
    torch.manual_seed(0)
    return VectorEncoder(STYLE, 1, (4, 6), 1, 3, **options).double()


@pytest.mark.parametrize(
    ("options", "scale_of"),
    [
        ({}, lambda raw: F.softplus(raw.mean((2, 3))) + 1e-5),
        ({"average_scale": True}, lambda raw: (F.softplus(raw) + 1e-5).mean((2, 3))),
        ({"scale": "exp"}, lambda raw: raw.mean((2, 3)).exp()),
        ({"scale": "exp", "average_scale": True}, lambda raw: raw.exp().mean((2, 3))),
    ],
)
def test_the_distribution_is_made_of_the_deepest_map(options, scale_of):
    net = encoder(**options)
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    mean, raw = net.head(net.encoder(x)[-1]).chunk(2, 1)
    found = net(x)
    torch.testing.assert_close(found.mean, mean.mean((2, 3)))
    torch.testing.assert_close(found.scale, scale_of(raw))


def test_the_combination_is_a_convolution_of_features_and_the_tiled_vector():
    torch.manual_seed(0)
    net = Combination(STYLE, 5, 3, 2, 3).double()
    features = torch.randn(2, 5, 4, 6, dtype=torch.float64)
    z = torch.randn(2, 3, dtype=torch.float64)
    weight = torch.cat([net.from_features.weight, net.from_latent.weight[..., None, None]], 1)
    tiled = torch.cat([features, z[..., None, None].expand(-1, -1, 4, 6)], 1)
    expected = net.rest(F.conv2d(tiled, weight, net.from_features.bias))
    torch.testing.assert_close(net(net.from_features(features), z), expected)


def test_unknown_scales_and_empty_vectors_are_refused():
    with pytest.raises(ValueError, match="softplus, exp"):
        encoder(scale="square")
    with pytest.raises(ValueError, match="latent_channels"):
        VectorEncoder(STYLE, 1, (4,), 1, 0)
    with pytest.raises(ValueError, match="combination_depth"):
        Combination(STYLE, 4, 2, 2, 0)
