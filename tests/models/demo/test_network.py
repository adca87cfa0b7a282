import pytest
import torch

from revgrad.models.demo.compare import gradient_errors
from revgrad.models.demo.network import DemoNetwork
from revgrad.models.losses import dice_cross_entropy


@pytest.fixture
def network():
    torch.manual_seed(0)
    return DemoNetwork(in_channels=2, classes=5, channels=16, levels=3, couplings=2).double()


@pytest.fixture
def batch(network):
    images = torch.randn(2, 2, 16, 12, dtype=torch.float64)
    return images, torch.randint(5, (2, 16, 12))


def test_gives_a_score_for_every_class_and_pixel(network, batch):
    assert network.stride == 4
    assert network(batch[0]).shape == (2, 5, 16, 12)


def test_gradients_are_those_of_plain_autograd(network, batch):
    images, labels = batch

    def gradients(save_memory):
        network.save_memory = save_memory
        x = images.clone().requires_grad_()
        loss = dice_cross_entropy(network(x), labels)
        return torch.autograd.grad(loss, [x, *network.parameters()])

    torch.testing.assert_close(gradients(True), gradients(False), rtol=1e-8, atol=1e-12)
    assert max(gradient_errors(network, images, labels).values()) < 1e-10


def test_every_parameter_is_used(network, batch):
    dice_cross_entropy(network(batch[0]), batch[1]).backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())
