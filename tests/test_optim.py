"""An optimizer inside the backward pass: the same weights, few gradients, and what is refused."""

import copy
import gc
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from revgrad import (
    AdditiveCoupling,
    ChannelMixing,
    OrthogonalDownsample,
    OrthogonalUpsample,
    ReversibleError,
    ReversibleSequence,
    Tap,
    check_reconstruction,
    is_recomputing,
)
from revgrad.memory import live_bytes, measure
from revgrad.optim import step_in_backward

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.05),
    "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True),
    "Adam, fused": lambda p: torch.optim.Adam(p, 1e-2, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 1e-2),
    "AdamW, foreach": lambda p: torch.optim.AdamW(p, 1e-2, foreach=True),
    "Adafactor": lambda p: torch.optim.Adafactor(p, 1e-2),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 1e-2),
}


def branch(channels=4):
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.Dropout(0.2)
    )


def network(**options):
    """With one sub-network in two layers, and orthogonal matrices in two layers."""
    torch.manual_seed(0)
    shared, down = branch(), OrthogonalDownsample(8, 2)
    layers = [
        AdditiveCoupling(branch(), shared),
        ChannelMixing(8),
        down,
        AdditiveCoupling(branch(16)),
        OrthogonalUpsample(8, 2, matrices=down.matrices),
        AdditiveCoupling(shared),
    ]
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), ReversibleSequence(layers, **options), nn.Conv2d(8, 2, 1)
    )
    net[1][0].f[0].bias.requires_grad_(False)
    return net


def iteration(net, optimizer, seed=0):
    """An ordinary one; random numbers of its own."""
    torch.manual_seed(seed)
    optimizer.zero_grad()
    net(torch.randn(2, 3, 4, 4)).square().mean().backward()
    optimizer.step()


def trained(net, make, inside, steps=4):
    optimizer = make(net.parameters())
    if inside:
        step_in_backward(optimizer)
    for i in range(steps):
        iteration(net, optimizer, i)
    return optimizer


def equal(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("save_memory", [True, False])
def test_weights_are_those_of_the_optimizer_afterwards_to_the_bit(name, save_memory):
    nets = [network(save_memory=save_memory) for _ in range(2)]
    start = copy.deepcopy(nets[0])
    for net, inside in zip(nets, (True, False), strict=True):
        trained(net, OPTIMIZERS[name], inside)
    assert equal(*nets) and not equal(nets[0], start)
    assert all(p.grad is None for p in nets[0].parameters())


def test_weights_of_exact_arithmetic_are_those_of_ordinary_autograd_and_stepping():
    """Each parameter in one layer: where gradients meet, their order differs."""
    make = OPTIMIZERS["AdamW"]
    nets = []
    for save_memory in (True, False):
        torch.manual_seed(0)
        layers = [AdditiveCoupling(branch(), branch()) for _ in range(3)]
        net = ReversibleSequence(layers, arithmetic="exact", save_memory=save_memory)
        net = nn.Sequential(nn.Conv2d(3, 8, 1), net)
        trained(net, make, inside=save_memory)
        nets.append(net)
    assert equal(*nets)


def test_under_autocast():
    nets = [network() for _ in range(2)]
    for net, inside in zip(nets, (True, False), strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            trained(net, OPTIMIZERS["AdamW"], inside)
    assert equal(*nets)


def test_two_forward_passes_and_a_penalty_in_one_loss():
    """The step waits until all have given their gradients."""
    nets = [network() for _ in range(2)]
    for net, inside in zip(nets, (True, False), strict=True):
        optimizer = OPTIMIZERS["momentum"](net.parameters())
        if inside:
            step_in_backward(optimizer)
        torch.manual_seed(1)
        for _ in range(3):
            optimizer.zero_grad()
            decay = 0.01 * sum(p.square().sum() for p in net.parameters())
            y = net(torch.randn(2, 3, 4, 4)) * net(torch.randn(2, 3, 4, 4))
            (y.mean() + decay).backward()
            optimizer.step()
    assert equal(*nets)


@pytest.mark.parametrize("use", ["tap", "output", "both"])
def test_a_sub_network_before_and_behind_a_tap(use):
    """From the tap alone, the layer behind is only computed back: it needs the old weights too."""
    nets = []
    for inside in (True, False):
        torch.manual_seed(0)
        shared = branch()
        layers = [AdditiveCoupling(shared), Tap("middle", nn.Conv2d(8, 2, 1))]
        net = ReversibleSequence([*layers, AdditiveCoupling(branch(), shared)])
        optimizer = OPTIMIZERS["momentum"](net.parameters())
        if inside:
            step_in_backward(optimizer)
        for _ in range(2):
            y, taps = net(torch.randn(2, 8, 4, 4))
            parts = {"tap": taps["middle"].sin().sum(), "output": y.square().mean()}
            (parts[use] if use in parts else sum(parts.values())).backward()
            optimizer.step()
            optimizer.zero_grad()
        nets.append(net)
    assert equal(*nets)


def test_parameters_are_stepped_while_the_backward_pass_goes_on():
    net = ReversibleSequence([AdditiveCoupling(nn.Conv2d(2, 2, 1)) for _ in range(4)])
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    events = []
    step_in_backward(optimizer, prepare=lambda p: events.append(f"step {number[p]}"))
    number = {p: i for i, layer in enumerate(net) for p in layer.parameters()}
    for i, layer in enumerate(net):
        layer.f.register_forward_hook(
            lambda *_, i=i: events.append(f"again {i}") if is_recomputing() else None
        )
    net(torch.randn(1, 4, 3, 3)).sum().backward()
    assert events == [f"{what} {i}" for i in (3, 2, 1, 0) for what in ("again", "step", "step")]


# --- memory ---------------------------------------------------------------------------------------


def peak_by_depth(depth, inside):
    """Bytes at the peak of a step of wide couplings of few pixels, less those of the parameters."""
    layers = [AdditiveCoupling(nn.Conv2d(32, 32, 3, padding=1)) for _ in range(depth)]
    net = ReversibleSequence(layers)
    optimizer = torch.optim.SGD(net.parameters(), 1e-3)
    if inside:
        step_in_backward(optimizer)
    x, dy = torch.randn(1, 64, 8, 8), torch.randn(1, 64, 8, 8)

    def step():
        net(x).backward(dy)
        optimizer.step()

    report = measure(step, net)
    return report.peak_without_scratch - report.parameters


def test_memory_does_not_grow_with_the_gradients_to_the_byte():
    gradients = 4 * (32 * 32 * 9 + 32)  # of a layer, in bytes
    inside = [peak_by_depth(depth, True) for depth in (4, 8, 16)]
    assert len(set(inside)) == 1
    usual = [peak_by_depth(depth, False) for depth in (4, 8, 16)]
    assert usual[2] - usual[1] == 2 * (usual[1] - usual[0]) == 8 * gradients
    # 3 layers' gradients less than the usual: of the fourth, none is there before it is computed.
    assert usual[0] - inside[0] == 3 * gradients


# --- one optimizer --------------------------------------------------------------------------------


def test_state_dict_is_that_of_the_ordinary_optimizer_and_loads_into_it():
    make = OPTIMIZERS["AdamW"]
    inside, usual = network(), network()
    a, b = trained(inside, make, True), trained(usual, make, False)
    found, expected = a.state_dict(), b.state_dict()
    assert found["param_groups"] == expected["param_groups"]
    assert found["state"].keys() == expected["state"].keys()
    for i, state in expected["state"].items():
        assert all(torch.equal(found["state"][i][key], value) for key, value in state.items())
    # Each goes on with the state of the other.
    nets = [network() for _ in range(2)]
    optimizers = [make(net.parameters()) for net in nets]
    step_in_backward(optimizers[0])
    for net, optimizer, state in zip(nets, optimizers, (expected, found), strict=True):
        net.load_state_dict(usual.state_dict())
        optimizer.load_state_dict(state)
        iteration(net, optimizer, seed=5)
    assert equal(*nets) and not equal(nets[0], usual)


def test_nothing_is_left_of_a_network_that_is_dropped():
    gc.collect()
    before = live_bytes()
    gc.disable()
    try:
        trained(network(), OPTIMIZERS["AdamW"], True, steps=1)
        assert live_bytes() <= before
    finally:
        gc.enable()


def test_an_optimizer_that_is_dropped_is_missed():
    net, _, x = small()
    step_in_backward(torch.optim.SGD(net.parameters(), 0.1))
    with pytest.raises(RuntimeError, match=r"the optimizer .* is gone; keep it"):
        net(x).sum().backward()


def test_schedulers_and_groups():
    nets = [network() for _ in range(2)]
    for net, inside in zip(nets, (True, False), strict=True):
        groups = [{"params": net[0].parameters(), "lr": 1.0}, {"params": net[1:].parameters()}]
        optimizer = torch.optim.SGD(groups, 0.1)
        if inside:
            step_in_backward(optimizer)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for i in range(3):
                iteration(net, optimizer, i)
                scheduler.step()
        assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.0125]
    assert equal(*nets)


def test_hooks_after_a_step_run_once_an_iteration():
    net, calls = network(), []
    optimizer = OPTIMIZERS["SGD"](net.parameters())
    step_in_backward(optimizer)
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    iteration(net, optimizer)
    assert calls == [1]


def test_what_got_no_hook_is_stepped_at_the_end():
    nets = [network() for _ in range(2)]
    for net, inside in zip(nets, (True, False), strict=True):
        optimizer = OPTIMIZERS["SGD"](net[:2].parameters())
        if inside:
            step_in_backward(optimizer)
        net[1][0].f[0].bias.requires_grad_()
        optimizer.add_param_group({"params": net[2].parameters(), "lr": 0.3})
        iteration(net, optimizer)
    assert equal(*nets)


def test_handle_takes_the_hooks_away():
    net, usual = network(), network()
    optimizer = OPTIMIZERS["momentum"](net.parameters())
    handle = step_in_backward(optimizer)
    iteration(net, optimizer)
    handle.remove()
    handle.remove()
    ordinary = trained(usual, OPTIMIZERS["momentum"], False, steps=1)
    net(torch.randn(2, 3, 4, 4)).sum().backward()
    assert net[0].weight.grad is not None and equal(net, usual)
    for one, other in ((net, optimizer), (usual, ordinary)):
        iteration(one, other, seed=3)
    assert equal(net, usual)


def test_clipping_by_parameter():
    nets = [network() for _ in range(2)]
    for net, inside in zip(nets, (True, False), strict=True):
        optimizer = OPTIMIZERS["SGD"](net.parameters())
        if inside:
            step_in_backward(optimizer, prepare=lambda p: clip(p) and None)
        torch.manual_seed(1)
        net(torch.randn(2, 3, 4, 4)).square().sum().backward()
        if not inside:
            assert max(clip(p) for p in net.parameters() if p.grad is not None) > 0.1
        optimizer.step()
    assert equal(*nets)


def clip(parameter):
    return nn.utils.clip_grad_norm_([parameter], 0.1).item()


def test_a_parameter_can_be_passed_over():
    net, start = network(), network()
    optimizer = OPTIMIZERS["AdamW"](net.parameters())
    step_in_backward(optimizer, prepare=lambda p: p.dim() == 4)
    iteration(net, optimizer)
    for p, q in zip(net.parameters(), start.parameters(), strict=True):
        assert torch.equal(p, q) == (p.dim() != 4)
        assert p.grad is None


def test_sparse_gradients():
    words = torch.tensor([1, 3, 3])
    tables = [nn.Embedding(5, 4, sparse=True) for _ in range(2)]
    tables[1].load_state_dict(tables[0].state_dict())
    for table, inside in zip(tables, (True, False), strict=True):
        optimizer = torch.optim.SparseAdam(table.parameters(), 0.1)
        if inside:
            step_in_backward(optimizer)
        for _ in range(2):
            optimizer.zero_grad()
            table(words).square().sum().backward()
            optimizer.step()
    assert equal(*tables)
    table = nn.Embedding(5, 4, sparse=True)
    adam = torch.optim.Adam(table.parameters())
    step_in_backward(adam)
    with pytest.raises(RuntimeError, match="sparse gradients"):
        table(words).sum().backward()


# --- what would be wrong --------------------------------------------------------------------------


def small():
    net = ReversibleSequence([AdditiveCoupling(nn.Conv2d(2, 2, 1)) for _ in range(3)])
    return net, torch.optim.SGD(net.parameters(), 0.1), torch.randn(1, 4, 3, 3)


class WritesData(torch.optim.SGD):
    """As optimizers outside of PyTorch do: the version of a parameter does not tell."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data.sub_(p.grad, alpha=group["lr"])


@pytest.mark.parametrize("kind", [torch.optim.SGD, WritesData])
def test_an_old_graph_does_not_get_the_new_weights(kind):
    net, _, x = small()
    optimizer = kind(net.parameters(), 0.1)
    step_in_backward(optimizer)
    y = net(x)
    y.sum().backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(ReversibleError, match=r"a parameter.*was changed in place"):
        y.square().sum().backward()


def test_accumulation_is_refused():
    net, optimizer, x = small()
    step_in_backward(optimizer)
    net(x).sum().backward()
    with pytest.raises(RuntimeError, match=r"second gradient.*call optimizer.step\(\)"):
        net(x).sum().backward()


def test_a_loss_of_another_network_that_flows_through_is_refused():
    """A discriminator would be stepped by the generator's loss; frozen meanwhile, it is not."""
    net, optimizer, x = small()
    generator = nn.Conv2d(4, 4, 1)
    step_in_backward(optimizer)
    net(x).sum().backward()
    optimizer.step()
    before = copy.deepcopy(net)
    net.requires_grad_(False)
    net(generator(x)).sum().backward()
    net.requires_grad_()
    assert equal(net, before) and generator.weight.grad is not None
    net(generator(x)).sum().backward()
    with pytest.raises(RuntimeError, match="second gradient"):
        net(x).sum().backward()


def test_a_parameter_in_two_reentrant_checkpoints_is_refused():
    """Their backward passes are passes of their own: each gives the parameter a gradient."""
    net, optimizer, x = small()
    step_in_backward(optimizer)
    y = checkpoint(net, x.requires_grad_(), use_reentrant=True)
    y = checkpoint(net, y, use_reentrant=True)
    with pytest.raises(RuntimeError, match="second gradient"):
        y.sum().backward()


def test_two_that_step_the_same_parameter_are_refused():
    net, optimizer, _ = small()
    handle = step_in_backward(optimizer)
    other = torch.optim.SGD(net.parameters(), 0.1)
    with pytest.raises(ValueError, match="stepped inside the backward pass already"):
        step_in_backward(other)
    handle.remove()
    step_in_backward(other)


def test_a_grad_scaler_raises():
    net, optimizer, x = small()
    step_in_backward(optimizer)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(net(x).sum()).backward()
    with pytest.raises(AssertionError, match="No inf checks were recorded"):
        scaler.step(optimizer)


def test_hooks_before_a_step_are_refused():
    net, optimizer, x = small()
    step_in_backward(optimizer)
    optimizer.register_step_pre_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match="prepare="):
        net(x).sum().backward()


def test_closures_are_refused():
    net, optimizer, _ = small()
    step_in_backward(optimizer)
    for call in (lambda: optimizer.step(lambda: 1.0), lambda: optimizer.step(closure=lambda: 1.0)):
        with pytest.raises(RuntimeError, match="closure"):
            call()
    with pytest.raises(ValueError, match="LBFGS evaluates the loss several times"):
        step_in_backward(torch.optim.LBFGS(net.parameters()))


def test_numbers_that_all_parameters_share_are_refused():
    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for group in self.param_groups:
                group["k"] = group.get("k", 0) + 1

    net, _, x = small()
    optimizer = Counting(net.parameters(), 0.1)
    step_in_backward(optimizer)
    with pytest.raises(RuntimeError, match="Counting changes 'k' of its param_groups"):
        net(x).sum().backward()


def test_overlapping_parameters_are_refused():
    whole = nn.Parameter(torch.zeros(6))
    part, beside = nn.Parameter(whole.data[2:4]), nn.Parameter(torch.zeros(6))
    with pytest.raises(ValueError, match=r"shapes \(6,\) and \(2,\) overlap in memory"):
        step_in_backward(torch.optim.SGD([beside, part, whole], 0.1))
    halves = [nn.Parameter(half) for half in torch.zeros(6).chunk(2)]
    step_in_backward(torch.optim.SGD(halves, 0.1))


def test_wrong_arguments():
    net, optimizer, _ = small()
    with pytest.raises(TypeError, match=r"must be a torch.optim.Optimizer, not ReversibleSequence"):
        step_in_backward(net)
    net.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of the optimizer requires a gradient"):
        step_in_backward(optimizer)


class Borrows(nn.Module):
    """Uses a weight that it does not own, without gradient: nothing links it to the graph."""

    def __init__(self, owner):
        super().__init__()
        self.borrowed = [owner]

    def forward(self, x):
        return torch.tanh(x @ self.borrowed[0].weight.detach())


@pytest.mark.parametrize("arithmetic", ["float", "exact"])
def test_a_weight_that_is_used_unseen_is_found_by_the_check(arithmetic):
    """The one way to a wrong gradient: the step comes before the repetition that uses it."""
    owner = nn.Linear(3, 3)
    layers = [AdditiveCoupling(Borrows(owner)), AdditiveCoupling(owner)]
    net = ReversibleSequence(layers, split_dim=-1, arithmetic=arithmetic)
    optimizer = torch.optim.SGD(net.parameters(), 1.0)
    step_in_backward(optimizer)
    total = net(torch.randn(2, 6, requires_grad=True)).square().sum()
    with check_reconstruction() as check:
        total = net(torch.randn(2, 6, requires_grad=True)).square().sum()
        if arithmetic == "exact":
            with pytest.raises(ReversibleError, match="did not give the same bits twice"):
                total.backward()
            return
        total.backward()
    assert max(check.deviations.values()) > 1e-3
