"""ActNorm: its start from the first batch, once, and its gradients."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.checkpoint import checkpoint

from revgrad import ActNorm, AdditiveCoupling, AffineCoupling, ReversibleError, ReversibleSequence
from revgrad.memory import measure

from .flows import DOUBLE, expect_same, jacobian_logdet, likelihood, sequence, sub


def statistics(y, dim=1):
    rows = y.transpose(0, dim).flatten(1)
    return rows.mean(1), rows.var(1, unbiased=False)


@pytest.mark.parametrize("save_memory", [True, False])
@pytest.mark.parametrize("shape", [(5, 7), (4, 7, 9), (2, 7, 4, 4), (2, 7, 2, 3, 4)])
def test_the_first_batch_comes_out_normalised(shape, save_memory):
    torch.manual_seed(0)
    net = sequence([ActNorm(7)], save_memory=save_memory)
    x = 3 * torch.randn(shape, dtype=DOUBLE) + torch.arange(7).view(7, *[1] * (len(shape) - 2))
    mean, variance = statistics(net(x))
    assert mean.abs().max() < 1e-6
    assert (variance - 1).abs().max() < 1e-5
    assert net[0].initialised
    before = copy.deepcopy(net.state_dict())
    net(x + 5)  # the second batch changes nothing
    after = net.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_each_layer_starts_from_what_it_gets():
    torch.manual_seed(0)
    net = ReversibleSequence([ActNorm(4), AffineCoupling(sub(2), sub(2)), ActNorm(4)])
    mean, variance = statistics(net(torch.randn(4, 4, 8, 8)))
    assert mean.abs().max() < 1e-5
    assert (variance - 1).abs().max() < 1e-3


@pytest.mark.parametrize("arithmetic", ["float", "exact"])
def test_gradients_of_the_very_first_step(arithmetic):
    """The start is taken before the tape: the step back sees the parameters of the step."""
    torch.manual_seed(0)
    layers = [ActNorm(4), AffineCoupling(sub(2), sub(2)), ActNorm(4)]
    net = sequence(layers, arithmetic=arithmetic)
    x = 2 + 3 * torch.randn(2, 4, 4, 4, dtype=DOUBLE)
    results = []
    for save_memory in (True, False):
        fresh = copy.deepcopy(net)
        fresh.save_memory = save_memory
        y, logdet = fresh(x, logdet=True)
        likelihood(y, logdet).backward()
        assert all(layer.initialised for layer in fresh if isinstance(layer, ActNorm))
        results.append([y, logdet, *fresh.state_dict().values(), *_grads(fresh)])
    for a, b in zip(*results, strict=True):
        assert (a.double() - b.double()).abs().max() <= 1e-10 * (1 + b.double().abs().max())


def _grads(net):
    return [p.grad for p in net.parameters()]


class Inner(nn.Module):
    """A sub-network with an ActNorm of its own: it is evaluated twice in the first step."""

    def __init__(self, channels):
        super().__init__()
        self.flow = ReversibleSequence([ActNorm(channels), AdditiveCoupling(nn.Tanh())])

    def forward(self, x):
        return self.flow(x)


@pytest.mark.parametrize("outer", ["sequence", "checkpoint"])
def test_a_recomputed_first_evaluation_does_not_start_again(outer, monkeypatch):
    starts, initialise = [], ActNorm._initialise
    monkeypatch.setattr(ActNorm, "_initialise", lambda *a: (starts.append(0), initialise(*a)))
    torch.manual_seed(0)
    inner = Inner(2).double()
    x = 2 + 3 * torch.randn(2, 4, 4, 4, dtype=DOUBLE)
    results = []
    for saving in (True, False):
        fresh = copy.deepcopy(inner)
        if outer == "sequence":
            net = ReversibleSequence([AdditiveCoupling(fresh)], save_memory=saving)
            net(x).sin().sum().backward()
        elif saving:
            checkpoint(fresh, x[:, :2], use_reentrant=False).sin().sum().backward()
        else:
            fresh(x[:, :2]).sin().sum().backward()
        results.append([*fresh.state_dict().values(), *_grads(fresh)])
    assert len(starts) == 2  # one of each network
    for a, b in zip(*results, strict=True):
        assert (a.double() - b.double()).abs().max() <= 1e-11 * (1 + b.double().abs().max())


@pytest.mark.parametrize("dim", [1, -1])
def test_logdet_inverse_and_gradcheck(dim):
    torch.manual_seed(0)
    net = sequence([ActNorm(4, dim=dim)], split_dim=dim)
    x = torch.randn(2, *((4, 3) if dim == 1 else (3, 4)), dtype=DOUBLE)
    net(2 * x + 1)
    y, logdet = net(x, logdet=True)
    assert (logdet - jacobian_logdet(net, x)).abs().max() < 1e-12
    assert (logdet - 3 * net[0].log_scale.sum()).abs().max() < 1e-12
    again, back = net.inverse(y, logdet=True)
    assert (again - x).abs().max() < 1e-12
    assert (back + logdet).abs().max() < 1e-12
    expect_same(net, x)

    def run(x, log_scale, shift):
        values = {"layers.0.log_scale": log_scale, "layers.0.shift": shift}
        return torch.func.functional_call(net, values, (x,), {"logdet": True})

    leaves = [t.detach().requires_grad_() for t in (x, net[0].log_scale, net[0].shift)]
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


def test_the_start_survives_saving_and_loading():
    torch.manual_seed(0)
    net, other = (ReversibleSequence([ActNorm(4)]) for _ in range(2))
    x = 2 + torch.randn(2, 4, 4, 4)
    y = net(x)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), y)
    assert torch.equal(other(x * 2), net(x * 2))
    # Back to a state before the first batch: the next one starts it anew.
    other.load_state_dict(ReversibleSequence([ActNorm(4)]).state_dict())
    assert (other(x) - y).abs().max() < 1e-5
    assert other[0].initialised


def test_evaluation_sets_nothing_and_is_the_identity_before_the_start():
    net = ReversibleSequence([ActNorm(4)]).eval()
    x = torch.randn(2, 4, 4, 4) + 1
    assert torch.equal(net(x), x)
    assert not net[0].initialised
    net.train()
    with torch.no_grad():  # a start needs no gradient
        net(x)
    assert net[0].initialised


def test_streams_of_different_sizes():
    torch.manual_seed(0)
    net = sequence([ActNorm(5)])
    streams = torch.randn(3, 2, 4, dtype=DOUBLE), torch.randn(3, 3, 6, dtype=DOUBLE)
    net(streams)
    logdet = net(streams, logdet=True)[1]
    scale = net[0].log_scale
    assert (logdet - 4 * scale[:2].sum() - 6 * scale[2:].sum()).abs().max() < 1e-12


def test_half_precision_and_a_frozen_layer():
    torch.manual_seed(0)
    net = ReversibleSequence([ActNorm(4)])
    y, logdet = net(torch.randn(8, 4, 16, 16).bfloat16() * 2 + 1, logdet=True)
    assert y.dtype == torch.bfloat16
    assert logdet.dtype == torch.float32
    mean, variance = statistics(y.float())
    assert mean.abs().max() < 0.02
    assert (variance - 1).abs().max() < 0.02
    net.requires_grad_(False)
    x = torch.randn(2, 4, 4, 4, requires_grad=True)
    net(x).sum().backward()
    assert (x.grad - net[0].log_scale.exp().view(4, 1, 1)).abs().max() < 1e-6


def test_memory_does_not_grow_with_depth():
    def peak(depth):
        net = ReversibleSequence([ActNorm(8) for _ in range(depth)])
        x, dy = torch.randn(2, 2, 8, 32, 32).unbind()

        def step():
            y, logdet = net(x, logdet=True)
            torch.autograd.backward((y, logdet), (dy, torch.ones(2)))

        report = measure(step, net)
        return report.peak - report.parameters - report.gradients

    # Besides the weights there is the buffer `initialised` of each layer, a byte.
    assert len({peak(depth) - depth for depth in (2, 8, 24)}) == 1


@pytest.fixture
def two_processes():
    """This process as the first of two; the other one is not there."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    torch.distributed.destroy_process_group()


def test_several_processes_do_not_each_start_on_their_own(two_processes):
    net = ReversibleSequence([ActNorm(4)])
    x = torch.randn(2, 4, 3)
    with pytest.raises(ReversibleError, match=r"layer 0 \(ActNorm\): .*DistributedDataParallel"):
        net(x)
    assert not net[0].initialised
    with torch.no_grad():
        net(x)
    net(x).sum().backward()


def test_what_it_refuses():
    with pytest.raises(ValueError, match="channels must be at least 1"):
        ActNorm(0)
    with pytest.raises(ReversibleError, match=r"layer 0 \(ActNorm\): made for 4 .* have 3 \+ 3"):
        ReversibleSequence([ActNorm(4)])(torch.randn(1, 6, 2))
    with pytest.raises(ReversibleError, match=r"takes two values of each"):
        ReversibleSequence([ActNorm(6)])(torch.randn(1, 6))
    net = ReversibleSequence([ActNorm(4)])
    with pytest.raises(ReversibleError, match=r"torch\.func"):
        torch.func.grad(lambda x: net(x).sum())(torch.randn(2, 4, 3))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])
def test_a_copy_that_is_reset_starts_anew(duplicate):
    """The copy's buffer has another version, which later coincides with the original's."""
    layer = ActNorm(4)
    fresh = copy.deepcopy(layer.state_dict())
    streams = (5 * torch.randn(8, 4, 3, 3) + 3).chunk(2, 1)
    layer(*streams)
    for loads in range(4):
        layer(*streams)
        twin = duplicate(layer)
        twin.load_state_dict(fresh)
        outputs = torch.cat(twin(*streams), 1)
        assert twin.initialised and outputs.mean().abs() < 1e-4, loads
        layer.load_state_dict(copy.deepcopy(layer.state_dict()))


def test_other_tensors_in_the_place_of_its_parameters_cannot_start():
    net = ReversibleSequence([ActNorm(4)])
    tensors = {k: p.detach().clone().requires_grad_() for k, p in net.named_parameters()}
    x = 5 * torch.randn(8, 4, 3, 3) + 3
    with pytest.raises(ReversibleError, match="run a batch through the network before"):
        torch.func.functional_call(net, tensors, (x,))
    assert not net[0].initialised
    net(x)
    torch.func.functional_call(net, tensors, (x,)).sum().backward()
    assert tensors["layers.0.shift"].grad is not None
