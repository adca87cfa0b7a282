"""The cases: things that users do, each compared with plain autograd.

A case is a function of a `Setup`. It returns if the engine is right, raises `MismatchError` if it
is silently wrong, and any other exception if it refuses. `refuses` marks the cases where revgrad
answers with an error that names the layer, by design.
"""

from __future__ import annotations

import copy
import gc
import io
import random
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

import revgrad
from revgrad.benchmarks.reliability.networks import KINDS, Plan
from revgrad.benchmarks.reliability.setup import (
    MismatchError,
    Net,
    NotOfferedError,
    Setup,
    branch,
    expect_equal,
    loss,
)


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        name: What the user does.
        run: The function.
        kinds: The networks that it makes sense for.
        refuses: Whether revgrad refuses with an error that names the layer.
    """

    name: str
    run: Callable[[Setup], None]
    kinds: tuple[str, ...]
    refuses: bool


CASES: list[Case] = []


def case(
    name: str, kinds: tuple[str, ...] = KINDS, refuses: bool = False
) -> Callable[[Callable[[Setup], None]], Callable[[Setup], None]]:
    """Enter a function into the table."""

    def enter(run: Callable[[Setup], None]) -> Callable[[Setup], None]:
        CASES.append(Case(name, run, kinds, refuses))
        return run

    return enter


def expect(condition: bool, message: str) -> None:
    """Raise `MismatchError` unless the condition holds."""
    if not condition:
        raise MismatchError(message)


def conv(*more: Callable[[int], nn.Module]) -> Callable[[int], nn.Module]:
    """A sub-network: a convolution and what follows."""

    def make(channels: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), *(m(channels) for m in more)
        )

    return make


def tanh(channels: int) -> nn.Module:
    """An activation that does not mind rounding."""
    return nn.Tanh()


# --- precision and layout ---------------------------------------------------------------------


@case("float64 gradients")
def float64(setup: Setup) -> None:
    setup.compare(Net.step)


@case("float32 gradients")
def float32(setup: Setup) -> None:
    setup.compare(Net.step, setup.nets(dtype=torch.float32), tolerance=1e-4)


@case("bfloat16 module, bfloat16 input")
def bfloat16(setup: Setup) -> None:
    setup.compare(Net.step, setup.nets(dtype=torch.bfloat16), tolerance=0.1)


@case("float16 module, float16 input")
def float16(setup: Setup) -> None:
    setup.compare(Net.step, setup.nets(dtype=torch.float16), tolerance=2e-2)


@case("channels-last: gradients and layout")
def channels_last(setup: Setup) -> None:
    def run(net: Net) -> Any:
        net.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        y = net(net.x.to(memory_format=torch.channels_last))
        loss(y).backward()
        return y.detach(), net.grads(), y.is_contiguous(memory_format=torch.channels_last)

    setup.compare(run)


@case("odd number of channels", kinds=("sequence",))
def odd_channels(setup: Setup) -> None:
    class Between(nn.Module):
        def __init__(self, c_in: int, c_out: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(c_in, c_out, 1).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).tanh()

    def alter(plan: Plan) -> None:
        plan.outer = [(Between(3, 4), Between(4, 3)) for _ in range(3)]

    setup.compare(Net.step, setup.nets(channels=7, alter=alter))


@case("empty batch")
def empty_batch(setup: Setup) -> None:
    setup.compare(Net.step, setup.nets(size=(0, 8, 8)))


@case("batch of one, non-contiguous input and gradient")
def non_contiguous(setup: Setup) -> None:
    def run(net: Net) -> Any:
        y = net(net.x.transpose(2, 3))
        (y.transpose(2, 3) * 2).sum().backward()
        return y.detach(), net.grads()

    setup.compare(run, setup.nets(size=(1, 8, 8)))


# --- random numbers, modes and buffers --------------------------------------------------------


@case("dropout")
def dropout(setup: Setup) -> None:
    make = conv(tanh, lambda c: nn.Dropout(0.4), lambda c: nn.Conv2d(c, c, 1))
    setup.compare(Net.step, setup.nets(make))


@case("dropout, another draw between forward and backward")
def dropout_draw_between(setup: Setup) -> None:
    def run(net: Net) -> Any:
        y = net()
        torch.rand(100)
        loss(y).backward()
        return net.grads()

    setup.compare(run, setup.nets(conv(tanh, lambda c: nn.Dropout2d(0.4))))


@case("Python's random in a sub-network")
def python_random(setup: Setup) -> None:
    class Skipping(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(channels, channels, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).tanh() * (0 if random.random() < 0.5 else 2)

    setup.compare(Net.step, setup.nets(Skipping))


@case("autocast around the forward pass")
def autocast(setup: Setup) -> None:
    def run(net: Net) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            y = net()
        loss(y).backward()
        return net.grads(), y.dtype == torch.float32

    setup.compare(run, setup.nets(dtype=torch.float32), tolerance=2e-3)


@case("autocast around forward and backward")
def autocast_both(setup: Setup) -> None:
    def run(net: Net) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            loss(net()).backward()
        return net.grads()

    setup.compare(run, setup.nets(dtype=torch.float32), tolerance=2e-3)


@case("autocast, a weight used again outside of the sequence")
def autocast_cache(setup: Setup) -> None:
    def run(net: Net) -> Any:
        weight = net.parameters()[0]
        with torch.autocast("cpu", torch.bfloat16):
            y = net()
            again = nn.functional.conv2d(net.x[:, : weight.shape[1]], weight)
        (loss(y) + loss(again)).backward()
        return net.grads()

    setup.compare(run, setup.nets(dtype=torch.float32), tolerance=2e-3)


@case("batch norm in training: gradients and running statistics")
def batch_norm(setup: Setup) -> None:
    setup.compare(Net.step, setup.nets(conv(nn.BatchNorm2d, tanh)))


@case("batch norm, two forward passes before the backward passes")
def batch_norm_twice(setup: Setup) -> None:
    def run(net: Net) -> Any:
        first, second = net(), net(net.x * 2)
        loss(first).backward()
        loss(second).backward()
        return net.grads(), net.buffers()

    setup.compare(run, setup.nets(conv(nn.BatchNorm2d, tanh)))


@case("batch norm in evaluation")
def batch_norm_eval(setup: Setup) -> None:
    def run(net: Net) -> Any:
        net.module.eval()
        return net.step()

    setup.compare(run, setup.nets(conv(nn.BatchNorm2d, tanh)))


@case("eval() between forward and backward")
def eval_between(setup: Setup) -> None:
    def run(net: Net) -> Any:
        y = net()
        net.module.eval()
        loss(y).backward()
        return net.grads(), net.buffers(), [m.training for m in net.module.modules()][:1]

    setup.compare(run, setup.nets(conv(nn.BatchNorm2d, tanh, lambda c: nn.Dropout(0.3))))


@case("instance norm with running statistics")
def instance_norm(setup: Setup) -> None:
    make = conv(lambda c: nn.InstanceNorm2d(c, affine=True, track_running_stats=True), tanh)
    setup.compare(Net.step, setup.nets(make))


@case("spectral norm (buffers of the power iteration)")
def spectral(setup: Setup) -> None:
    def make(c: int) -> nn.Module:
        return nn.Sequential(spectral_norm(nn.Conv2d(c, c, 3, padding=1).double()), nn.Tanh())

    setup.compare(Net.step, setup.nets(make))


@case("weight norm (a parametrised weight)")
def weight_normed(setup: Setup) -> None:
    def make(c: int) -> nn.Module:
        return nn.Sequential(weight_norm(nn.Conv2d(c, c, 3, padding=1)), nn.Tanh())

    setup.compare(Net.step, setup.nets(make))


class Counting(nn.Module):
    """A sub-network that depends on buffers which it changes in two ways."""

    calls: Tensor
    mean: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(5000))

    def forward(self, x: Tensor) -> Tensor:
        """Scale by the buffers, then change them."""
        y = self.conv(x).tanh() * (1 + self.calls) + self.mean.sum()
        with torch.no_grad():
            self.calls = self.calls + 1
            self.mean += x.mean()
        return y


@case("a buffer that the sub-network replaces, one that it writes into")
def own_buffers(setup: Setup) -> None:
    setup.compare(lambda net: [net.step(), net.step()], setup.nets(Counting))


# --- parameters -------------------------------------------------------------------------------


@case("frozen parameters")
def frozen_parameters(setup: Setup) -> None:
    def run(net: Net) -> Any:
        for p in net.parameters()[::2]:
            p.requires_grad_(False)
        return net.step()

    setup.compare(run)


@case("a frozen sub-network")
def frozen_branch(setup: Setup) -> None:
    def run(net: Net) -> Any:
        net.branches[1].requires_grad_(False)
        return net.step()

    setup.compare(run)


@case("all frozen, gradient of the input only")
def all_frozen(setup: Setup) -> None:
    def run(net: Net) -> Any:
        net.module.requires_grad_(False)
        return net.step()

    setup.compare(run)


@case("first couplings frozen, input without gradient")
def frozen_start(setup: Setup) -> None:
    def run(net: Net) -> Any:
        for b in net.branches[:2]:
            b.requires_grad_(False)
        return net.step()

    setup.compare(run, setup.nets(needs_grad=False))


class WithUnused(nn.Module):
    """A sub-network with a parameter that takes no part."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        """The convolution alone."""
        return self.conv(x).tanh()


@case("an unused parameter")
def unused_parameter(setup: Setup) -> None:
    setup.compare(Net.step, setup.nets(WithUnused))


@case("a sub-network shared by all couplings")
def shared_module(setup: Setup) -> None:
    def alter(plan: Plan) -> None:
        f = plan.outer[0][0]
        plan.outer = [(f, f) for _ in plan.outer]

    setup.compare(Net.step, setup.nets(alter=alter))


@case("a shared sub-network with batch norm and dropout")
def shared_stateful(setup: Setup) -> None:
    def alter(plan: Plan) -> None:
        f = plan.outer[0][0]
        plan.outer = [(f, f) for _ in plan.outer]

    make = conv(nn.BatchNorm2d, tanh, lambda c: nn.Dropout(0.3))
    setup.compare(Net.step, setup.nets(make, alter=alter))


@case("a weight tied between two sub-networks")
def tied_weight(setup: Setup) -> None:
    def alter(plan: Plan) -> None:
        for f, g in plan.outer:
            convs = [m for b in (f, g) for m in b.modules() if isinstance(m, nn.Conv2d)]
            convs[1].weight = convs[0].weight

    setup.compare(Net.step, setup.nets(alter=alter))


@case("torch.func.functional_call with other parameters")
def functional_call(setup: Setup) -> None:
    def run(net: Net) -> Any:
        own = net.parameters()
        scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
        given = {n: p * scale for n, p in net.module.named_parameters()}
        y = torch.func.functional_call(net.module, given, (net.x, *net.side))
        loss(y).backward()
        return y.detach(), scale.grad, net.grads(), len(own)

    setup.compare(run)


@case("parameters changed between forward and backward: an error, as in plain autograd")
def changed_parameters(setup: Setup) -> None:
    def run(net: Net) -> Any:
        y = net()
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(1.1)
        try:
            loss(y).backward()
        except RuntimeError:
            return "refused"
        return "accepted"

    setup.compare(run)


@case("ten steps of Adam")
def adam(setup: Setup) -> None:
    def run(net: Net) -> Any:
        optimizer = torch.optim.Adam(net.module.parameters(), 1e-3)
        for _ in range(10):
            optimizer.zero_grad()
            loss(net()).backward()
            optimizer.step()
        return net.parameters()

    setup.compare(run, tolerance=1e-7)


# --- inputs and outputs -----------------------------------------------------------------------


@case("an input that needs no gradient (data straight in)")
def no_input_grad(setup: Setup) -> None:
    setup.compare(Net.step, setup.nets(needs_grad=False))


@case("the caller's input stays as it is")
def input_untouched(setup: Setup) -> None:
    def run(net: Net) -> Any:
        before, version = net.x.detach().clone(), net.x._version
        results = net.step()
        same = torch.equal(before, net.x.detach())
        return results, same, net.x._version == version

    setup.compare(run)


@case("an input that is used elsewhere too (skip around)")
def skip_around(setup: Setup) -> None:
    def run(net: Net) -> Any:
        h = net.x * 2
        y = net(h) + h.sin()
        loss(y).backward()
        return y.detach(), net.grads()

    setup.compare(run)


@case("ReLU before the sequence")
def relu_before(setup: Setup) -> None:
    def run(net: Net) -> Any:
        loss(net((net.x * 2).relu())).backward()
        return net.grads()

    setup.compare(run)


@case("in-place ReLU before the sequence")
def inplace_relu_before(setup: Setup) -> None:
    def run(net: Net) -> Any:
        loss(net((net.x * 2).relu_())).backward()
        return net.grads()

    setup.compare(run)


@case("the input changed in place after the forward pass")
def input_changed_later(setup: Setup) -> None:
    def run(net: Net) -> Any:
        x = net.x.detach().clone()
        y = net(x)
        try:
            x.zero_()
            loss(y).backward()
        except RuntimeError:  # plain autograd refuses where it needs the input
            return None
        return net.grads()

    _, tested = setup.nets(needs_grad=False)
    plain, _ = setup.nets(needs_grad=False)
    x = plain.x.detach()
    loss(plain(x)).backward()
    found = run(tested)
    if found is not None:
        expect_equal(
            [g for g in plain.grads() if g is not None], [g for g in found if g is not None]
        )


@case("in-place activation at the end of a sub-network")
def inplace_at_end(setup: Setup) -> None:
    setup.compare(Net.step, setup.nets(conv(lambda c: nn.LeakyReLU(0.1, inplace=True))))


@case("a loss on a part of the output")
def partial_loss(setup: Setup) -> None:
    def run(net: Net) -> Any:
        net()[:, :2, 1:3].sin().sum().backward()
        return net.grads()

    setup.compare(run)


@case("the output changed in place", refuses=True)
def output_changed(setup: Setup) -> None:
    def run(net: Net) -> Any:
        y = net() * 1 if not isinstance(net.module, revgrad.ReversibleSequence) else net()
        y.mul_(2)
        loss(y).backward()
        return net.grads()

    setup.compare(run)


# Plain autograd refuses it too in the other networks.
@case("the first operation of a sub-network in place", kinds=("sequence", "side"), refuses=True)
def inplace_first(setup: Setup) -> None:
    def make(c: int) -> nn.Module:
        return nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(c, c, 3, padding=1))

    setup.compare(Net.step, setup.nets(make, needs_grad=False))


@case("a sub-network that changes the shape", refuses=True)
def wrong_shape(setup: Setup) -> None:
    def make(c: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.AdaptiveAvgPool2d(1))

    setup.compare(Net.step, setup.nets(make))


@case("a sub-network that gives a wider dtype", refuses=True)
def wrong_dtype(setup: Setup) -> None:
    class Widening(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(channels, channels, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.to(self.conv.weight.dtype)).double()

    setup.compare(Net.step, setup.nets(Widening, dtype=torch.float32))


@case("a tensor that a sub-network captures without owning it", refuses=True)
def captured(setup: Setup) -> None:
    shared = torch.ones((), dtype=torch.float64, requires_grad=True)

    class Capturing(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(channels, channels, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).tanh() * shared

    def run(net: Net) -> Any:
        shared.grad = None
        loss(net()).backward()
        return net.grads(), shared.grad

    setup.compare(run, setup.nets(Capturing))


# --- ways to call the backward pass -----------------------------------------------------------


@case("two losses on one output, two backward passes")
def two_losses(setup: Setup) -> None:
    def run(net: Net) -> Any:
        y = net()
        loss(y).backward(retain_graph=True)
        y.sin().sum().backward()
        return net.grads()

    setup.compare(run)


@case("retain_graph and the same backward pass again")
def retain_graph(setup: Setup) -> None:
    def run(net: Net) -> Any:
        total = loss(net())
        total.backward(retain_graph=True)
        total.backward()
        return net.grads()

    setup.compare(run, setup.nets(conv(nn.BatchNorm2d, tanh, lambda c: nn.Dropout(0.2))))


@case("a second backward pass without retain_graph: an error, as in plain autograd")
def no_retain_graph(setup: Setup) -> None:
    def run(net: Net) -> Any:
        total = loss(net())
        total.backward()
        try:
            total.backward()
        except RuntimeError:
            return "refused"
        return "accepted"

    setup.compare(run)


@case("torch.autograd.grad of the parameters")
def autograd_grad(setup: Setup) -> None:
    setup.compare(lambda net: torch.autograd.grad(loss(net()), net.parameters()))


@case("torch.autograd.grad of the input alone")
def autograd_grad_input(setup: Setup) -> None:
    def run(net: Net) -> Any:
        return torch.autograd.grad(loss(net()), net.x), net.grads()

    setup.compare(run)


@case("torch.autograd.grad of one parameter in the middle, twice")
def autograd_grad_middle(setup: Setup) -> None:
    def run(net: Net) -> Any:
        total = loss(net())
        middle = net.parameters()[len(net.parameters()) // 2]
        first = torch.autograd.grad(total, middle, retain_graph=True)
        return first, torch.autograd.grad(total, net.parameters())

    setup.compare(run)


@case("backward(inputs=[...]) leaves the others alone")
def backward_inputs(setup: Setup) -> None:
    def run(net: Net) -> Any:
        loss(net()).backward(inputs=net.parameters()[2:4])
        return net.grads()

    setup.compare(run)


@case("gradient accumulation over two batches")
def accumulation(setup: Setup) -> None:
    def run(net: Net) -> Any:
        loss(net()).backward()
        loss(net(net.x * 0.5)).backward()
        return net.grads()

    setup.compare(run)


@case("double backward (gradient penalty)")
def double_backward(setup: Setup) -> None:
    def run(net: Net) -> Any:
        y = net()
        (g,) = torch.autograd.grad(loss(y), net.x, create_graph=True)
        (g.pow(2).sum() + loss(y)).backward()
        return net.grads()

    setup.compare(run)


@case("torch.func.grad over the network")
def func_grad(setup: Setup) -> None:
    def run(net: Net) -> Any:
        own = {n: p.detach() for n, p in net.module.named_parameters()}
        side = tuple(s.detach() for s in net.side)

        def total(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
            return loss(torch.func.functional_call(net.module, parameters, (x, *side)))

        _, dx = torch.func.grad(total, argnums=(0, 1))(own, net.x.detach())
        return dx

    setup.compare(run)


@case("torch.func.vmap over the network")
def func_vmap(setup: Setup) -> None:
    def run(net: Net) -> Any:
        xs = torch.stack((net.x.detach(), net.x.detach() * 2))
        return torch.func.vmap(lambda x: net(x))(xs).detach()

    setup.compare(run)


@case("forward-mode differentiation")
def forward_mode(setup: Setup) -> None:
    def run(net: Net) -> Any:
        x = net.x.detach()
        return torch.func.jvp(lambda x: net(x), (x,), (torch.ones_like(x),))[1].detach()

    setup.compare(run)


# --- hooks ------------------------------------------------------------------------------------


@case("hooks on parameters fire once")
def parameter_hooks(setup: Setup) -> None:
    def run(net: Net) -> Any:
        fired: list[int] = []
        for i, p in enumerate(net.parameters()):
            p.register_hook(lambda g, i=i: fired.append(i))
            p.register_post_accumulate_grad_hook(lambda p, i=i: fired.append(-i))
        return net.step(), sorted(fired)

    setup.compare(run)


@case("forward hooks on modules see the same values; is_recomputing() tells the second run")
def module_hooks(setup: Setup) -> None:
    def run(net: Net) -> Any:
        seen: list[Tensor] = []

        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            if not revgrad.is_recomputing():
                seen.append(output.detach().clone())

        for b in net.branches:
            b.register_forward_hook(hook)
        results = net.step()
        return results, sum(s.sum() for s in seen), len(seen)

    setup.compare(run)


@case("full backward hooks on a sub-network")
def backward_hooks(setup: Setup) -> None:
    def run(net: Net) -> Any:
        seen: list[Tensor] = []

        def hook(module: nn.Module, grad_input: Any, grad_output: Any) -> None:
            seen.append(grad_output[0].clone())

        net.branches[0].register_full_backward_hook(hook)
        return net.step(), seen

    setup.compare(run)


@case("an optimizer step inside the backward pass")
def step_in_backward(setup: Setup) -> None:
    def run(net: Net) -> Any:
        def update(p: Tensor) -> None:
            with torch.no_grad():
                p -= 0.01 * p.grad  # type: ignore[operator]
            p.grad = None

        for p in net.parameters():
            p.register_post_accumulate_grad_hook(update)
        for _ in range(3):
            loss(net()).backward()
        return net.parameters()

    setup.compare(run)


# --- inside other tools -----------------------------------------------------------------------


@case("inside checkpoint (use_reentrant=False)")
def in_checkpoint(setup: Setup) -> None:
    def run(net: Net) -> Any:
        y = checkpoint(lambda x: net(x) * 2, net.x, use_reentrant=False)
        loss(y).backward()
        return net.grads()

    setup.compare(run, setup.nets(conv(tanh, lambda c: nn.Dropout(0.3))))


@case("inside checkpoint (use_reentrant=True)")
def in_reentrant_checkpoint(setup: Setup) -> None:
    def run(net: Net) -> Any:
        y = checkpoint(lambda x: net(x) * 2, net.x, use_reentrant=True)
        loss(y).backward()
        return net.grads()

    setup.compare(run, setup.nets(conv(tanh, lambda c: nn.Dropout(0.3))))


@case("checkpoint inside a sub-network")
def checkpoint_inside(setup: Setup) -> None:
    class Checkpointed(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.inner = branch(channels)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = checkpoint(self.inner, x, use_reentrant=False)
            return y

    setup.compare(Net.step, setup.nets(Checkpointed))


@case("saved-tensor hooks (save_on_cpu)")
def saved_tensor_hooks(setup: Setup) -> None:
    def run(net: Net) -> Any:
        with torch.autograd.graph.save_on_cpu():
            y = net()
        loss(y).backward()
        return net.grads()

    setup.compare(run)


@case("anomaly mode")
def anomaly(setup: Setup) -> None:
    def run(net: Net) -> Any:
        with torch.autograd.detect_anomaly(check_nan=True):
            return net.step()

    setup.compare(run)


@case("torch.compile, graph breaks allowed")
def compiled(setup: Setup) -> None:
    def run(net: Net) -> Any:
        torch._dynamo.reset()
        y = torch.compile(net.module, backend="eager")(net.x, *net.side)
        loss(y).backward()
        return y.detach(), net.grads()

    setup.compare(run)


@case("deepcopy")
def deep_copy(setup: Setup) -> None:
    def run(net: Net) -> Any:
        net.step()
        twin = copy.deepcopy(net.module)
        x = net.x.detach().requires_grad_()
        loss(twin(x, *net.side)).backward()
        return x.grad, len(list(twin.parameters()))

    setup.compare(run)


@case("pickle of the whole module")
def pickled(setup: Setup) -> None:
    def run(net: Net) -> Any:
        loss(net()).backward()
        file = io.BytesIO()
        torch.save(net.module, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
        return twin(net.x, *net.side).detach()

    setup.compare(run)


@case("state_dict into a new network")
def state_dict(setup: Setup) -> None:
    def run(net: Net) -> Any:
        state = {k: v * 1.1 for k, v in net.module.state_dict().items()}
        net.module.load_state_dict(state)
        return net.step()

    setup.compare(run)


@case("no_grad and inference_mode")
def no_grad(setup: Setup) -> None:
    def run(net: Net) -> Any:
        with torch.no_grad():
            first = net()
        with torch.inference_mode():
            second = net().clone()
        kept = net.x.untyped_storage().nbytes() > 0
        return first, first.requires_grad, second.sum().detach(), kept

    setup.compare(run)


# --- faults and leaks -------------------------------------------------------------------------


class FaultyError(Exception):
    """What the faulty sub-network raises."""


class Faulty(nn.Module):
    """A sub-network that fails on demand, in the forward pass or in its gradient."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.forward_error: type[BaseException] | None = None
        self.backward_error: type[BaseException] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The convolution, if nothing is wrong."""
        if self.forward_error is not None:
            raise self.forward_error("simulated")
        y = self.conv(x).tanh()
        if y.requires_grad and self.backward_error is not None:
            y.register_hook(self._fail)
        return y

    def _fail(self, grad: Tensor) -> None:
        assert self.backward_error is not None
        raise self.backward_error("simulated")


def _survives(setup: Setup, attribute: str, error: type[BaseException]) -> None:
    def run(net: Net) -> Any:
        faulty = next(m for b in net.branches[2:] for m in b.modules() if isinstance(m, Faulty))
        setattr(faulty, attribute, error)
        y = None
        try:
            y = net()
            loss(y).backward()
        except error as raised:
            message = str(raised)
            raised.__traceback__ = None
            del raised
        else:
            message = "nothing was raised"
        held = [weakref.ref(t) for t in (y,) if t is not None]
        del y
        gc.collect()
        setattr(faulty, attribute, None)
        for leaf in net.leaves():
            leaf.grad = None
        return message[-9:], [h() is None for h in held], net.step()

    setup.compare(run, setup.nets(Faulty))


@case("an exception in a sub-network's forward; the next step is right")
def fault_forward(setup: Setup) -> None:
    def run(net: Net) -> Any:
        faulty = next(m for b in net.branches[2:] for m in b.modules() if isinstance(m, Faulty))
        faulty.forward_error = FaultyError
        try:
            net()
        except FaultyError as raised:
            message = str(raised)
        faulty.forward_error = None
        return message, net.step()

    setup.compare(run, setup.nets(Faulty))


@case("an exception in the backward pass; nothing is held, the next step is right")
def fault_backward(setup: Setup) -> None:
    _survives(setup, "backward_error", FaultyError)


@case("KeyboardInterrupt in the backward pass; the next step is right")
def fault_interrupt(setup: Setup) -> None:
    _survives(setup, "backward_error", KeyboardInterrupt)


@case("out of memory in the backward pass (simulated); the next step is right")
def fault_memory(setup: Setup) -> None:
    _survives(setup, "backward_error", torch.OutOfMemoryError)


@case("an output that is never used: nothing leaks")
def unused_output(setup: Setup) -> None:
    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    def run(net: Net) -> Any:
        kept: weakref.WeakSet[Kept] = weakref.WeakSet()

        def pack(tensor: Tensor) -> Kept:
            box = Kept(tensor.detach())  # a result that is stored would keep its own node alive
            kept.add(box)
            return box

        gc.disable()  # reference counts alone must free everything
        try:
            h = net.x * 2
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
                y = net(h)
            stored, held = len(kept) > 0, weakref.ref(h)
            del h, y
            expect(stored, "the case tests nothing")
            return len(kept), held() is None
        finally:
            gc.enable()

    setup.compare(run)


@case("two models in two threads")
def threads(setup: Setup) -> None:
    def run(net: Net) -> Any:
        twins = [net, *(Net(m, p, net.x, net.side) for m, p in _twins(net))]
        results: list[Any] = [None] * len(twins)

        def work(i: int) -> None:
            for _ in range(5):
                results[i] = twins[i].step()

        workers = [threading.Thread(target=work, args=(i,)) for i in range(len(twins))]
        for w in workers:
            w.start()
        for w in workers:
            w.join()
        return results

    def _twins(net: Net) -> list[tuple[nn.Module, Plan]]:
        module, branches = copy.deepcopy((net.module, net.branches))
        return [(module, Plan(setup.kind, [(b, b) for b in branches]))]

    setup.compare(run)


# --- what only sequences with an interface for it can do --------------------------------------


@case("side inputs: gradients, keywords, values that are no tensors", kinds=("side",))
def side_inputs(setup: Setup) -> None:
    def run(net: Net) -> Any:
        y = net.module(net.x, scale=net.side[0], power=2)
        loss(y).backward()
        return y.detach(), net.grads()

    setup.compare(run)


@case("a side input without gradient, of integers", kinds=("side",))
def integer_side_input(setup: Setup) -> None:
    def run(net: Net) -> Any:
        y = net.module(net.x, torch.tensor([2, 3]).view(2, 1, 1, 1))
        loss(y).backward()
        return y.detach(), net.grads()

    setup.compare(run)


def _needs_inverse(module: nn.Module) -> Any:
    if not hasattr(module, "inverse"):
        raise NotOfferedError("no inverse")
    return module


@case("inverse(forward(x)) is x")
def inverse(setup: Setup) -> None:
    _, tested = setup.nets()
    module = _needs_inverse(tested.module)
    with torch.no_grad():
        back = module.inverse(tested(), *tested.side)
    expect_equal([tested.x.detach()], [back], tolerance=1e-10)
