import torch

from revgrad.models import UNet
from revgrad.models.baselines import DropoutUNet


def test_eval_mode_leaves_the_dropout_on_and_nothing_else():
    net = DropoutUNet(2, 1, 2, (4, 4, 4), 1).eval()
    training = {path for path, module in net.named_modules() if module.training}
    assert training == {"body.encoder.dropout", "body.decoder.dropout"}
    image = torch.randn(1, 1, 8, 8)
    assert not torch.equal(net(image), net(image))


def test_each_sample_is_a_pass_through_the_whole_network():
    net = DropoutUNet(2, 1, 2, (4, 4, 4, 4), 1, dropout_levels=2).eval()
    image = torch.randn(2, 1, 8, 8)
    torch.manual_seed(1)
    samples = net.sample(image, 3)
    torch.manual_seed(1)
    for k in range(3):
        assert torch.equal(samples[:, k], net.logits(image))


def test_without_dropout_it_is_the_unet():
    torch.manual_seed(0)
    plain = UNet(2, 1, 2, (4, 4), 1).eval()
    net = DropoutUNet(2, 1, 2, (4, 4), 1, dropout=0).eval()
    net.load_state_dict(plain.state_dict())
    image = torch.randn(1, 1, 4, 4)
    assert torch.equal(net.sample(image, 2)[:, 1], plain(image))


def test_more_levels_than_there_are_mean_all():
    net = DropoutUNet(2, 1, 2, (4, 4), 1, dropout_levels=9).eval()
    assert net.body.encoder.first_dropout == net.body.decoder.first_dropout == 0
    assert net.sample(torch.randn(1, 1, 4, 4), 2).shape == (1, 2, 2, 4, 4)
