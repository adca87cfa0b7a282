"""Train copies of one network side by side, storing activations and recomputing them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from revgrad.models.demo.settings import Settings
from revgrad.models.iunet import iUNet
from revgrad.models.losses import dice_cross_entropy

# The two ways to train: the name in the report, and the network's `save_memory`.
VARIANTS = {"plain": False, "reversible": True}
# Plain training again, from weights moved by one rounding: what rounding alone does to training.
NUDGED = "nudged"


class Trainee:
    """One of the networks in training, with the losses and times of its steps."""

    def __init__(self, network: iUNet, settings: Settings) -> None:
        self.network = network
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self._optimizer = torch.optim.Adam(network.parameters(), settings.learning_rate)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, settings.learning_rate, total_steps=settings.steps
        )

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Take one step of the optimizer on a batch (N, C, H, W), (N, H, W)."""
        _synchronize(images.device)
        start = time.perf_counter()
        self._optimizer.zero_grad()
        loss = backward(self.network, images, labels)
        self._optimizer.step()
        self._schedule.step()
        _synchronize(images.device)
        self.seconds.append(time.perf_counter() - start)
        self.losses.append(loss)


def train(
    trainees: dict[str, Trainee],
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    after_step: Callable[[int], None],
) -> None:
    """Take every step with all trainees before the next one, so that they share every condition.

    Whoever goes first in one step goes last in the next: a busy machine then slows all alike.
    ``after_step`` is called with the number of each step, from 1.
    """
    order = list(trainees.values())
    for number, (images, labels) in enumerate(batches, start=1):
        for trainee in order:
            trainee.step(images.to(device), labels.to(device))
        order.reverse()
        after_step(number)


def backward(network: iUNet, images: Tensor, labels: Tensor) -> float:
    """Add the gradients of one batch to the parameters' and return the loss."""
    loss = dice_cross_entropy(network(images), labels, batch=True)
    loss.backward()
    return loss.item()


@torch.no_grad()
def nudge(network: iUNet) -> None:
    """Move each weight to the next number that its type can hold."""
    for parameter in network.parameters():
        parameter.copy_(torch.nextafter(parameter, torch.full_like(parameter, torch.inf)))


def repeatable() -> AbstractContextManager[None]:
    """Make CUDA convolutions give the same bits every time; CPU ones do."""
    return torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
