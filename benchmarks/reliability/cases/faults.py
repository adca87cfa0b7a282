"""Exceptions, leaks and threads."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from revgrad.benchmarks.reliability.case import case
from revgrad.benchmarks.reliability.networks import Plan
from revgrad.benchmarks.reliability.setup import (
    Net,
    Setup,
    loss,
)


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
            held = weakref.ref(h)
            del h, y
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
