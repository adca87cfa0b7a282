import torch

from revgrad.models import iUNet
from revgrad.models.demo.compare import gradient_errors


def test_in_float64_there_is_no_error():
    torch.manual_seed(0)
    network = iUNet(2, 2, 5, (8, 16), (1, 1)).double()
    images, labels = torch.randn(2, 2, 12, 8, dtype=torch.float64), torch.randint(5, (2, 12, 8))
    errors = gradient_errors(network, images, labels)
    assert max(errors.values()) < 1e-10
    single = gradient_errors(network.float(), images.float(), labels)
    assert min(single.values()) > 1e-8 and max(single.values()) < 1e-4
    assert all(parameter.grad is None for parameter in network.parameters())
