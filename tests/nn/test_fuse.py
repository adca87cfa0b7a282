"""`fuse` in networks of any make: the same function, parameters and keys."""

import copy

import pytest
import torch
from torch import nn

from revgrad.nn import NormAct, fuse


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Sequential(nn.Conv2d(8, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.LeakyReLU(0.2)),
        nn.GroupNorm(2, 8),
        nn.Conv2d(8, 8, 1),
        nn.SiLU(),
        nn.LayerNorm(4),
        nn.GELU(),
    ).double()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def same(a, b, x):
    ys = [module(x) for module in (a, b)]
    torch.testing.assert_close(*ys, rtol=1e-9, atol=1e-9)
    for y in ys:
        y.square().mean().backward()
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-8, atol=1e-8)


def test_the_function_the_parameters_and_the_keys_stay():
    plain = network()
    fused = copy.deepcopy(plain)
    before = dict(fused.named_parameters()) | dict(fused.named_buffers())
    report = fuse(fused)
    after = dict(fused.named_parameters()) | dict(fused.named_buffers())
    assert list(before) == list(after) and all(before[k] is after[k] for k in before)
    assert list(fused.state_dict()) == list(plain.state_dict())
    for training in (True, True, False):
        plain.train(training), fused.train(training)
        same(plain, fused, torch.randn(2, 3, 8, 8, dtype=torch.float64))
    torch.testing.assert_close(dict(fused.state_dict()), dict(plain.state_dict()))
    found = [(r.name, r.norm, r.activation) for r in report.replaced]
    assert sorted(found, key=str) == [
        ("1", "BatchNorm2d", ("2", "ReLU")),
        ("3.1", "InstanceNorm2d", ("3.2", "LeakyReLU")),
        ("4", "GroupNorm", None),
        ("7", "LayerNorm", ("8", "GELU")),
    ]
    assert report.left == []
    assert [type(fused[i]) for i in (1, 2, 4, 6)] == [NormAct, nn.Identity, NormAct, nn.SiLU]
    assert fused[3][1].slope == 0.2


def test_the_report_says_what_it_did():
    text = str(fuse(nn.Sequential(network(), nn.SyncBatchNorm(4))))
    assert text.splitlines()[0] == "replaced 4 norms, 3 with their activation"
    assert "  0.1: BatchNorm2d and 0.2: ReLU" in text
    assert "left 1 alone" in text and "1: SyncBatchNorm is none of torch's norms" in text


def test_a_second_time_changes_nothing():
    module = network()
    fuse(module)
    assert fuse(module).replaced == [] and isinstance(module[1], NormAct)


class Named(nn.Sequential):
    """As MONAI's ADN: a Sequential whose children have names."""

    def __init__(self, *order):
        super().__init__()
        children = {"N": nn.InstanceNorm2d(4), "D": nn.Dropout(0.5), "A": nn.LeakyReLU()}
        for name in order:
            self.add_module(name, children[name])


class Backwards(Named):
    """Its children do not run in the order they stand in."""

    def forward(self, x):
        return self.N(self.A(x))


def test_named_children_of_a_sequential():
    module = Named("N", "A")
    report = fuse(module)
    assert report.replaced[0].activation == ("A", "LeakyReLU")
    assert isinstance(module.A, nn.Identity) and module.N.activation == "leaky_relu"
    apart = Named("N", "D", "A")
    fuse(apart)
    assert apart.N.activation == "none" and isinstance(apart.A, nn.LeakyReLU)


def test_activations_of_what_has_a_forward_of_its_own_stay():
    module = Backwards("N", "A")
    x = torch.randn(2, 4, 5, 5)
    want = module(x)
    report = fuse(module)
    assert report.replaced[0].activation is None and isinstance(module.A, nn.LeakyReLU)
    torch.testing.assert_close(module(x), want)


class Block(nn.Module):
    """A norm of its own and an activation used twice, called from code."""

    def __init__(self):
        super().__init__()
        self.norm, self.act = nn.BatchNorm2d(4), nn.ReLU()
        self.seq = nn.Sequential(nn.InstanceNorm2d(4), self.act, nn.InstanceNorm2d(4), self.act)

    def forward(self, x):
        return self.seq(self.norm(x)) + self.act(x)


def test_an_activation_used_elsewhere_stays_there():
    module = Block().double()
    plain = copy.deepcopy(module)
    report = fuse(module)
    assert len(report.replaced) == 3 and sum(r.activation is not None for r in report.replaced) == 2
    assert isinstance(module.act, nn.ReLU)
    same(plain, module, torch.randn(2, 4, 5, 5, dtype=torch.float64))


def test_norms_in_several_places_and_with_hooks_stay():
    norm = nn.BatchNorm2d(4)
    report = fuse(module := nn.Sequential(norm, nn.ReLU(), norm))
    assert report.replaced == [] and "used in several places" in str(report)
    assert module[0] is norm and isinstance(module[1], nn.ReLU)

    hooked = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.InstanceNorm2d(4), nn.ReLU())
    hooked[0].register_forward_hook(lambda *_: None)
    hooked[3].register_forward_pre_hook(lambda *_: None)
    report = fuse(hooked)
    assert isinstance(hooked[0], nn.BatchNorm2d) and isinstance(hooked[1], nn.ReLU)
    assert hooked[2].activation == "none" and isinstance(hooked[3], nn.ReLU)
    assert report.left == [("0", "has hooks"), ("3", "has hooks")]


def test_subclasses_and_changed_modules_stay():
    class Own(nn.BatchNorm2d):
        pass

    changed = nn.InstanceNorm2d(4)
    changed.forward = lambda x: x
    weighted = nn.utils.parametrizations.weight_norm(nn.GroupNorm(2, 4), dim=None)
    module = nn.Sequential(Own(4), nn.ReLU(), changed, weighted, nn.LazyBatchNorm2d())
    report = fuse(module)
    assert report.replaced == []
    assert [name for name, _ in report.left] == ["0", "2", "3", "4"]


def test_a_norm_by_itself_is_reported():
    assert "only what it contains" in str(fuse(nn.BatchNorm2d(4)))


def test_tanh_gelu_and_unknown_activations_stay():
    module = nn.Sequential(
        nn.GroupNorm(2, 4), nn.GELU(approximate="tanh"), nn.GroupNorm(2, 4), nn.PReLU()
    )
    fuse(module)
    assert [m.activation for m in module if isinstance(m, NormAct)] == ["none", "none"]
    assert isinstance(module[1], nn.GELU) and isinstance(module[3], nn.PReLU)


def test_fused_networks_copy_pickle_and_train_on(tmp_path):
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    fuse(module)
    again = copy.deepcopy(module)
    torch.save(module, tmp_path / "m.pt")
    loaded = torch.load(tmp_path / "m.pt", weights_only=False)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(again(x), loaded(x))
    before = module[1].weight.detach().clone()
    module(x).square().mean().backward()
    optimizer.step()
    assert not torch.equal(module[1].weight, before)
