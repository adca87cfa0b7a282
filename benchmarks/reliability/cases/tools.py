"""Inside torch's other tools; copied and stored."""

from __future__ import annotations

import copy
import io
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from revgrad.benchmarks.reliability.case import case, conv, tanh
from revgrad.benchmarks.reliability.setup import (
    Net,
    Setup,
    branch,
    loss,
)


def _in_checkpoint(setup: Setup, use_reentrant: bool) -> None:
    def run(net: Net) -> Any:
        y = checkpoint(lambda x: net(x * 1) * 2, net.x, use_reentrant=use_reentrant)
        loss(y).backward()
        return net.grads()

    setup.compare(run, setup.nets(conv(tanh, lambda c: nn.Dropout(0.3))))


@case("inside checkpoint (use_reentrant=False)")
def in_checkpoint(setup: Setup) -> None:
    _in_checkpoint(setup, use_reentrant=False)


@case("inside checkpoint (use_reentrant=True)")
def in_reentrant_checkpoint(setup: Setup) -> None:
    _in_checkpoint(setup, use_reentrant=True)


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
        y = torch.compile(net.module, backend="eager")(net.inside(), *net.side)
        loss(y).backward()
        return y.detach(), net.grads()

    setup.compare(run)


@case("deepcopy")
def deep_copy(setup: Setup) -> None:
    def run(net: Net) -> Any:
        net.step()
        twin = copy.deepcopy(net.module)
        x = net.x.detach().requires_grad_()
        loss(twin(x * 1, *net.side)).backward()
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
