import pytest
import torch
from torch import nn

from revgrad import ReversibleSequence
from revgrad.models.blocks import ConvStyle, make_act, make_norm


def weights(module):
    return sum(p.numel() for p in module.parameters() if p.dim() > 1)


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
@pytest.mark.parametrize("norm", ["batch", "instance", ("group", {"num_groups": 2}), None])
@pytest.mark.parametrize("reversible", [False, True])
def test_a_row_keeps_the_size_and_trains(spatial_dims, norm, reversible):
    style = ConvStyle(spatial_dims, norm, ("leakyrelu", {"negative_slope": 0.1}), True, reversible)
    row = style.row(3, 8, 2)
    y = row(torch.randn(2, 3, *[6] * spatial_dims))
    assert y.shape == (2, 8, *[6] * spatial_dims)
    y.square().sum().backward()
    assert all(p.grad is not None for p in row.parameters())


def test_a_reversible_row_is_made_of_couplings_of_half_the_width():
    plain, reversible = (ConvStyle(2, reversible=r).row(8, 8, 3) for r in (False, True))
    assert len(plain) == 3
    (sequence,) = reversible
    assert isinstance(sequence, ReversibleSequence)
    assert len(sequence.layers) == 2 * 3
    assert 2 * weights(reversible) == weights(plain)


def test_two_couplings_for_a_unit_have_its_weights():
    plain = ConvStyle(2).row(8, 8, 3)
    equal = ConvStyle(2, reversible=True, couplings_per_unit=2).row(8, 8, 3)
    assert weights(plain) == weights(equal)


def test_where_the_width_changes_a_1x1_unit_comes_first():
    first = ConvStyle(2, reversible=True).row(3, 8, 2)[0]
    assert first[0].kernel_size == (1, 1)
    assert [type(m) for m in first[1:]] == [nn.BatchNorm2d, nn.ReLU]


def test_names_that_are_none_are_refused():
    with pytest.raises(ValueError, match="batch, instance, group"):
        make_norm("spectral", 2, 4)
    with pytest.raises(ValueError, match="relu"):
        make_act("tanhh")
    with pytest.raises(ValueError, match="7 channels"):
        ConvStyle(2, reversible=True).row(3, 7, 2)
    # None would leave rows that do nothing.
    with pytest.raises(ValueError, match="couplings_per_unit must be at least 1, not 0"):
        ConvStyle(2, reversible=True, couplings_per_unit=0)


def test_two_couplings_are_a_block_of_the_paper():
    torch.manual_seed(0)
    (sequence,) = ConvStyle(2, reversible=True).row(4, 4, 1).double().eval()
    f, g = (layer.f for layer in sequence.layers)
    x1, x2 = torch.randn(2, 1, 2, 5, 5, dtype=torch.float64)
    y1 = x1 + f(x2)
    y2 = x2 + g(y1)
    torch.testing.assert_close(sequence((x1, x2)), (y1, y2))
