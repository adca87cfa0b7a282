"""DistributedDataParallel around reversible sequences, in two processes: see `pair`."""

import copy
from functools import partial
from itertools import cycle

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from revgrad import AdditiveCoupling, ReversibleError, ReversibleSequence, is_recomputing
from revgrad.optim import step_in_backward

from .networks import (
    EXACT_SCHEDULES,
    FLOW_SCHEDULES,
    SCHEDULES,
    batch,
    branch,
    exact_gradients,
    expect_close,
    expect_equal,
    expect_raises,
    flow_gradients,
    flow_gradients_of_one,
    half,
    loss,
    made,
    optimizer_of,
    train,
    trained_by_one,
)
from .pair import main
from .sync_norm import SyncNorm, collectives

OPTIONS = {
    "plain": {},
    "static graph": {"static_graph": True},
    "gradients in the buckets": {"gradient_as_bucket_view": True},
    "unused parameters": {"find_unused_parameters": True},
    "small buckets": {"bucket_cap_mb": 0.002},
    "all at once": {
        "static_graph": True,
        "gradient_as_bucket_view": True,
        "bucket_cap_mb": 0.002,
    },
}


def weights_are_those_of_one_process(rank, options):
    net = made()
    train(DDP(net, **options), rank=rank)
    expect_close(net.parameters(), trained_by_one().parameters())


def weights_with_schedules(rank):
    expected = list(trained_by_one(steps=2).parameters())
    for schedule, options in zip(SCHEDULES.values(), cycle(OPTIONS.values()), strict=False):
        net = made(schedule=schedule)
        train(DDP(net, **options), rank=rank, steps=2)
        expect_close(net.parameters(), expected)


def gradients_of_exact_arithmetic(rank):
    """To the bit those of DDP around ordinary autograd; with dropout and batch norm."""
    wrap = partial(DDP, bucket_cap_mb=0.001)
    expected = exact_gradients(wrap, rank, save_memory=False)
    for schedule in EXACT_SCHEDULES:
        found = exact_gradients(wrap, rank, schedule=schedule)
        for tensors, same in zip(found, expected, strict=True):
            expect_equal(tensors, same)


def gradients_of_a_flow(rank):
    expected = flow_gradients_of_one()
    for schedule in FLOW_SCHEDULES:
        for options in ({}, {"static_graph": True}):
            found = flow_gradients(partial(DDP, **options), rank, schedule=schedule)
            expect_close(found, expected)


def buckets_fire_during_the_backward_pass(rank, way):
    """The buckets of a layer are handed on before the layer before it is repeated."""
    layers = [AdditiveCoupling(nn.Conv2d(4, 4, 1)) for _ in range(6)]
    net = ReversibleSequence(layers, schedule={2: way, 3: way})
    repeated = [i for i in range(6) if way != "store" or i not in (2, 3)]
    events = []
    for i, layer in enumerate(net):
        layer.f.register_forward_hook(
            lambda *_, i=i: events.append(f"layer {i}") if is_recomputing() else None
        )
    ddp = DDP(net, bucket_cap_mb=1e-6)  # less than any parameter has
    number = {p: i for i, layer in enumerate(net) for p in layer.parameters()}

    def reduce(state, bucket):
        of = {number[p] for p in bucket.parameters()}
        events.extend(f"bucket {i}" for i in sorted(of))
        done = dist.all_reduce(bucket.buffer().div_(2), async_op=True).get_future()
        return done.then(lambda future: future.value()[0])

    ddp.register_comm_hook(None, reduce)
    for _ in range(3):  # after the first, buckets are in the order of the gradients
        events.clear()
        ddp(torch.randn(1, 8, 4, 4)).sum().backward()
    assert events == [
        f"{name} {i}"
        for i in reversed(range(6))
        for name in ["layer"] * (i in repeated) + ["bucket", "bucket"]  # of weight and bias
    ]


def accumulation_without_reducing(rank):
    net, expected = made(), made(save_memory=False)
    ddp = DDP(net)
    with ddp.no_sync():
        loss(ddp(half(0, rank))).backward()
    loss(ddp(half(1, rank))).backward()
    for step in range(2):
        loss(expected(batch(step))).backward()
    expect_close((p.grad for p in net.parameters()), (p.grad for p in expected.parameters()))


class Sometimes(nn.Module):
    """Two sequences, of which a step uses one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        sequences = ([AdditiveCoupling(branch(4), branch(4))] for _ in range(2))
        self.ways = nn.ModuleList(map(ReversibleSequence, sequences))

    def forward(self, x, way):
        return self.ways[way](x)


def a_sequence_that_is_not_used(rank):
    net = Sometimes().double()
    expected = copy.deepcopy(net)
    ddp = DDP(net, find_unused_parameters=True)
    x = torch.cat([half(0, r) for r in (0, 1)]).repeat(1, 3, 1, 1)[:, :8]
    for way in (0, 1, 0):
        ddp(x.chunk(2)[rank], way).square().mean().backward()
        expected(x, way).square().mean().backward()
    expect_close((p.grad for p in net.parameters()), (p.grad for p in expected.parameters()))


class Half(nn.Module):
    """Owns a parameter that it does not use."""

    def __init__(self):
        super().__init__()
        self.conv, self.idle = nn.Conv2d(4, 4, 1), nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.conv(x)


def a_parameter_that_no_step_uses(rank):
    """Its node is there, as its owner's is: DDP waits for nothing."""
    for options in ({}, {"find_unused_parameters": True}, {"static_graph": True}):
        torch.manual_seed(0)
        net = ReversibleSequence([AdditiveCoupling(Half()), AdditiveCoupling(Half())]).double()
        expected = copy.deepcopy(net)
        ddp = DDP(net, **options)
        x = torch.randn(4, 8, 3, 3, generator=torch.Generator().manual_seed(1)).double()
        for _ in range(3):
            ddp(x.chunk(2)[rank]).square().mean().backward()
            expected(x).square().mean().backward()
        for layer, plain in zip(net, expected, strict=True):
            expect_close([layer.f.conv.weight.grad], [plain.f.conv.weight.grad])
            assert layer.f.idle.grad is None or not layer.f.idle.grad.any()


def statistics_over_processes(rank):
    """As SyncBatchNorm, which PyTorch has for accelerators alone: collectives in both passes."""
    torch.manual_seed(0)
    subs = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), SyncNorm(4)) for _ in range(3)]
    net = ReversibleSequence([AdditiveCoupling(*subs[:2]), AdditiveCoupling(subs[2])]).double()
    expected = copy.deepcopy(net)
    ddp = DDP(net, broadcast_buffers=False, bucket_cap_mb=1e-6)
    x = torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(1)).double()
    for norm in (m for m in expected.modules() if isinstance(m, SyncNorm)):
        norm.alone = True
    collectives.clear()
    for _ in range(2):
        ddp(x.chunk(2)[rank]).square().mean().backward()
    # A forward pass, its repetition, and a backward pass, in each of three norms and two steps.
    assert collectives == 2 * (3 * ["forward"] + 3 * ["again", "backward"])
    for _ in range(2):
        expected(x).square().mean().backward()
    expect_close((p.grad for p in net.parameters()), (p.grad for p in expected.parameters()))
    expect_close(net.buffers(), expected.buffers())
    assert int(subs[0][1].count) == 2


def a_wrapper_inside_a_layer_is_refused(rank):
    layer = AdditiveCoupling(DDP(nn.Conv2d(4, 4, 1)))
    net = ReversibleSequence([AdditiveCoupling(nn.Identity()), layer])
    words = ["layer 1 (AdditiveCoupling): the sub-network is wrapped by DistributedDataParallel"]
    expect_raises(ReversibleError, words, lambda: net(torch.randn(1, 8, 3, 3)))
    net.save_memory = False
    net(torch.randn(1, 8, 3, 3)).sum().backward()


def a_step_before_gradients_are_averaged_is_refused(rank):
    net = made()
    optimizer = optimizer_of(net)
    step_in_backward(optimizer)
    words = ["gradient of this process alone", "local=True"]
    expect_raises(RuntimeError, words, lambda: loss(net(half(0, rank))).backward())


def processes_of_their_own_may_step(rank):
    for schedule in ("invert", *SCHEDULES.values()):
        nets = [made(schedule=schedule), made(schedule=schedule)]
        for net, inside in zip(nets, (True, False), strict=True):
            optimizer = optimizer_of(net)
            if inside:
                step_in_backward(optimizer, local=True)
            train(net, optimizer, rank, steps=1)
        expect_equal(*(net.parameters() for net in nets))


CASES = {
    **{
        f"weights, {name}": partial(weights_are_those_of_one_process, options=options)
        for name, options in OPTIONS.items()
    },
    "weights, schedules": weights_with_schedules,
    "exact arithmetic": gradients_of_exact_arithmetic,
    "flow": gradients_of_a_flow,
    **{
        f"buckets, {way}": partial(buckets_fire_during_the_backward_pass, way=way)
        for way in ("invert", "recompute", "store")
    },
    "no_sync": accumulation_without_reducing,
    "unused sequence": a_sequence_that_is_not_used,
    "idle parameter": a_parameter_that_no_step_uses,
    "synchronised statistics": statistics_over_processes,
    "wrapper inside a layer": a_wrapper_inside_a_layer_is_refused,
    "processes of their own step": processes_of_their_own_may_step,
    "step before averaging": a_step_before_gradients_are_averaged_is_refused,
}

if __name__ == "__main__":
    main(CASES)
