"""FSDP2 and tensor parallelism in reversible sequences, in two processes: see `pair`."""

import warnings
from functools import partial

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from revgrad import (
    AdditiveCoupling,
    OrthogonalDownsample,
    OrthogonalUpsample,
    ReversibleError,
    ReversibleSequence,
)
from revgrad.models import iUNet
from revgrad.optim import step_in_backward

from .networks import (
    EXACT_SCHEDULES,
    FLOW_SCHEDULES,
    SCHEDULES,
    Scaled,
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


def shard(module, **options):
    """On the CPU, also where there is a GPU."""
    fully_shard(module, mesh=init_device_mesh("cpu", (2,)), **options)


def whole(net, **options):
    shard(net, **options)


def sequence(net, **options):
    shard(net.body, **options)
    shard(net, **options)


def each_layer(net, **options):
    for layer in net.body:
        shard(layer, **options)
    shard(net, **options)


def each_layer_kept(net):
    each_layer(net, reshard_after_forward=False)


def inner_layers(net):
    """Also the layers of the sequence inside the sequence, and it."""
    for layer in net.body[3]:
        shard(layer)
    each_layer(net)


WAYS = {
    "whole network": whole,
    "sequence": sequence,
    "each layer": each_layer,
    "each layer, kept": each_layer_kept,
    "layers in layers": inner_layers,
}


def full(tensors):
    return [None if t is None else t.full_tensor() for t in tensors]


def weights_are_those_of_one_process(rank, way):
    net = made()
    way(net)
    train(net, rank=rank)
    assert all(isinstance(p, DTensor) for p in net.parameters())
    expect_close(full(net.parameters()), trained_by_one().parameters())


def weights_with_schedules(rank, way):
    expected = list(trained_by_one(steps=2).parameters())
    for schedule in SCHEDULES.values():
        net = made(schedule=schedule)
        way(net)
        train(net, rank=rank, steps=2)
        expect_close(full(net.parameters()), expected)


def layers_and_sequence(net):
    """The sequence, and its layers one by one."""
    for layer in net:
        shard(layer)
    shard(net)
    return net


def gradients_of_exact_arithmetic(rank):
    """To the bit those of `fully_shard` on ordinary autograd; with dropout and batch norm."""
    expected, same = exact_gradients(layers_and_sequence, rank, save_memory=False)
    for schedule in EXACT_SCHEDULES:
        found, buffers = exact_gradients(layers_and_sequence, rank, schedule=schedule)
        expect_equal(full(found), full(expected))
        expect_equal(buffers, same)


def gradients_of_a_flow(rank):
    expected = flow_gradients_of_one()
    for schedule in FLOW_SCHEDULES:
        found = flow_gradients(layers_and_sequence, rank, schedule=schedule)
        expect_close(full(found), expected)


def layers_without_a_root(rank):
    """`fully_shard` on layers alone; what is around them stays as it is."""
    net, expected = made(), made(save_memory=False)
    for layer in net.body:
        shard(layer)
    loss(net(half(0, rank))).backward()
    loss(expected(batch(0))).backward()
    pairs = zip(net.body.parameters(), expected.body.parameters(), strict=True)
    for p, q in pairs:
        expect_close(full([p.grad]), [q.grad])


def accumulation_without_reducing(rank):
    net, expected = made(), made(save_memory=False)
    each_layer(net)
    for step in range(2):
        net.set_requires_gradient_sync(step == 1)
        loss(net(half(step, rank))).backward()
        loss(expected(batch(step))).backward()
    expect_close(full(p.grad for p in net.parameters()), [p.grad for p in expected.parameters()])


def a_branch_is_refused(rank):
    words = [
        "layer 1 (AdditiveCoupling): the sub-network is wrapped by fully_shard",
        "for layer in sequence: fully_shard(layer)",
    ]
    for inside in (False, True):
        layers = [AdditiveCoupling(nn.Identity()), AdditiveCoupling(branch(4), branch(4))]
        net = ReversibleSequence(layers)
        shard(net[1].f[0] if inside else net[1].f)
        if inside:
            words[0] = "layer 1 (AdditiveCoupling): '0' in the sub-network is wrapped"
        expect_raises(ReversibleError, words, lambda net=net: net(torch.randn(1, 8, 4, 4)))
        net.save_memory = False
        net(torch.randn(1, 8, 4, 4)).sum().backward()


def an_fsdp1_branch_is_refused(rank):
    f = FullyShardedDataParallel(branch(4), device_id=torch.device("cpu"))
    net = ReversibleSequence([AdditiveCoupling(f)])
    words = ["layer 0 (AdditiveCoupling): the sub-network is wrapped by FullyShardedDataParallel"]
    expect_raises(ReversibleError, words, lambda: net(torch.randn(1, 8, 4, 4)))


def tensor_parallel_branches(rank):
    """Their parameters are divided for good, and nothing has to be gathered."""

    def perceptron():
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))

    nets = []
    for way in ("one process", "parallel", "parallel, steps inside"):
        torch.manual_seed(0)
        net = ReversibleSequence([AdditiveCoupling(perceptron()) for _ in range(3)], split_dim=-1)
        net.save_memory = way != "one process"
        if way != "one process":
            for layer in net.double():
                plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
                parallelize_module(layer.f, init_device_mesh("cpu", (2,)), plan)
        optimizer = optimizer_of(net.double())
        if way == "parallel, steps inside":
            step_in_backward(optimizer)
        for _ in range(2):
            optimizer.zero_grad()
            net(torch.linspace(-1, 1, 32).view(4, 8).double()).square().mean().backward()
            optimizer.step()
        nets.append(net)
    expected, *found = nets
    for net in found:
        expect_close(full(net.parameters()), expected.parameters())


def gradients_reduced_in_float32(rank):
    net, expected = made(), made(save_memory=False)
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    each_layer(net, mp_policy=policy)
    loss(net(half(0, rank))).backward()
    loss(expected(batch(0))).backward()
    expect_close(
        full(p.grad for p in net.parameters()), [p.grad for p in expected.parameters()], 1e-6
    )


def parameters_in_half_precision(rank):
    """Gathered as bfloat16, used under autocast, with streams of float32: as without the tape."""
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    grads = []
    for save_memory in (True, False):
        torch.manual_seed(0)
        layers = [AdditiveCoupling(branch(4), branch(4)) for _ in range(3)]
        net = ReversibleSequence(layers, arithmetic="exact", save_memory=save_memory)
        for layer in net:
            shard(layer, mp_policy=policy)
        shard(net, mp_policy=policy)
        torch.manual_seed(rank)
        with torch.autocast("cpu", torch.bfloat16):
            y = net(torch.randn(2, 8, 6, 6))
        assert y.dtype == torch.float32
        y.square().mean().backward()
        grads.append(full(p.grad for p in net.parameters()))
    assert all(map(torch.equal, *grads))
    assert all(g.any() for g in grads[0])


def casts_of_the_streams_are_refused(rank):
    net = ReversibleSequence([AdditiveCoupling(branch(4)) for _ in range(2)])
    shard(net[1], mp_policy=MixedPrecisionPolicy(torch.bfloat16))
    words = ["layer 1 (FSDPAdditiveCoupling): a forward hook changed", "cast_forward_inputs=False"]
    expect_raises(ReversibleError, words, lambda: net(torch.randn(1, 8, 4, 4)))


def steps_inside_the_backward_pass(rank, schedules):
    """To the bit those of the optimizer afterwards; no gradient is left."""
    for schedule in schedules:
        nets, states, stepped = [], [], []
        for inside in (True, False):
            net = made(schedule=schedule)
            each_layer(net)
            optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
            if inside:
                step_in_backward(optimizer, prepare=lambda p, all=stepped: all.append(id(p)))
            train(net, optimizer, rank)
            if inside:
                assert len(stepped) == 3 * len(set(stepped)) == 3 * len(list(net.parameters()))
                assert all(p.grad is None for p in net.parameters())
            nets.append(full(net.parameters()))
            state = optimizer.state_dict()["state"]
            states.append(full(state[i]["exp_avg"] for i in sorted(state)))
        expect_equal(*nets)
        expect_equal(*states)


def sharing(save_memory=True):
    """Layers that share a sub-network and matrices: they must be sharded together."""
    torch.manual_seed(0)
    shared, down = branch(4), OrthogonalDownsample(8, 2)
    up = OrthogonalUpsample(8, 2, matrices=down.matrices)
    layers = [AdditiveCoupling(shared), down, AdditiveCoupling(branch(16)), up]
    layers.append(AdditiveCoupling(branch(4), shared))
    return ReversibleSequence(layers, save_memory=save_memory).double()


def an_iunet(rank):
    """Its norms are fused and added to the streams in one pass; its resampling is learned."""
    nets = []
    for way in (None, each_layer):
        torch.manual_seed(0)
        net = iUNet(2, 1, 2, (4, 8), (2, 1), save_memory=way is not None).double()
        if way is not None:
            way(net)
        nets.append(net)
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    nets[0](x).square().mean().backward()
    nets[1](x.chunk(2)[rank]).square().mean().backward()
    found, expected = ([p.grad for p in net.parameters()] for net in nets[::-1])
    expect_close(full(found), expected, 1e-10)


def two_backward_passes(rank):
    net, expected = made(), made(save_memory=False)
    each_layer(net)
    for one, x in ((net, half(0, rank)), (expected, batch(0))):
        total = loss(one(x))
        total.backward(retain_graph=True)
        total.backward()
    expect_close(full(p.grad for p in net.parameters()), [p.grad for p in expected.parameters()])


def the_inverse(rank):
    """It is not the call of a layer: FSDP is told to gather weights for it, too."""
    net = ReversibleSequence([AdditiveCoupling(branch(4), branch(4)), Scaled(branch(4))]).double()
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    for layer in net:
        shard(layer)
        register_fsdp_forward_method(layer, "inverse")
    with torch.no_grad():
        expect_close([net.inverse(net(x))], [x])
    net(x).square().mean().backward()  # by way of the inverse, in the layer that has no step back
    found = full(p.grad for p in net.parameters())
    net.zero_grad()
    net.save_memory = False
    net(x).square().mean().backward()
    expect_close(found, full(p.grad for p in net.parameters()))


def shared_parameters(rank):
    expected = sharing(save_memory=False)
    nets = [sharing(), sharing()]
    for net in nets:
        shard(net)
    x = torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(1)).double()
    for net, inside in ((expected, False), (nets[0], False), (nets[1], True)):
        optimizer = optimizer_of(net)
        if inside:
            step_in_backward(optimizer)
        for _ in range(2):
            optimizer.zero_grad()
            net(x if net is expected else x.chunk(2)[rank]).square().mean().backward()
            optimizer.step()
    for net in nets:
        expect_close(full(net.parameters()), expected.parameters())


CASES = {
    **{
        f"weights, {name}": partial(weights_are_those_of_one_process, way=way)
        for name, way in WAYS.items()
    },
    **{
        f"schedules, {name}": partial(weights_with_schedules, way=WAYS[name])
        for name in ("sequence", "layers in layers")
    },
    "exact arithmetic": gradients_of_exact_arithmetic,
    "flow": gradients_of_a_flow,
    "layers without a root": layers_without_a_root,
    "accumulation": accumulation_without_reducing,
    "branch": a_branch_is_refused,
    "branch of FSDP1": an_fsdp1_branch_is_refused,
    "tensor parallel branches": tensor_parallel_branches,
    "reduced in float32": gradients_reduced_in_float32,
    "parameters in half precision": parameters_in_half_precision,
    "casts of streams": casts_of_the_streams_are_refused,
    "shared parameters": shared_parameters,
    "iUNet": an_iunet,
    "two backward passes": two_backward_passes,
    "inverse": the_inverse,
    "step in backward": partial(steps_inside_the_backward_pass, schedules=["invert"]),
    "step in backward, schedules": partial(
        steps_inside_the_backward_pass, schedules=list(SCHEDULES.values())[:3]
    ),
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(CASES)
