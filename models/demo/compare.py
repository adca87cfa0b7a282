"""What sets the two ways to train apart, and what does not."""

import copy

import torch
from torch import Tensor

from revgrad.memory import MemoryReport, measure
from revgrad.models.data.organs import ORGANS
from revgrad.models.demo.slices import Slices
from revgrad.models.demo.train import VARIANTS, backward
from revgrad.models.iunet import iUNet
from revgrad.models.metrics.dice import dice_per_class


def peak_memory(network: iUNet, images: Tensor, labels: Tensor) -> dict[str, MemoryReport]:
    """Peak of the forward and backward pass of a batch, for each variant.

    Without the optimizer, whose state is the same in both. Gradients are left behind.
    """
    reports = {}
    for variant, save_memory in VARIANTS.items():
        network.save_memory = save_memory
        reports[variant] = measure(lambda: backward(network, images, labels), network)
    return reports


def gradient_errors(network: iUNet, images: Tensor, labels: Tensor) -> dict[str, float]:
    """How far each variant's parameter gradients are from those of plain autograd in float64.

    Returns:
        By variant: the norm of the difference over the norm of the float64 gradient.
    """
    reference = _gradient(copy.deepcopy(network).double(), False, images.double(), labels)
    errors = {}
    for variant, save_memory in VARIANTS.items():
        error = _gradient(network, save_memory, images, labels) - reference
        errors[variant] = (error.norm() / reference.norm()).item()
    return errors


def _gradient(network: iUNet, save_memory: bool, images: Tensor, labels: Tensor) -> Tensor:
    """All parameters' gradients in one float64 vector; none is left behind."""
    network.save_memory = save_memory
    network.zero_grad()
    backward(network, images, labels)
    parts = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
    network.zero_grad()
    return torch.cat(parts).double()


@torch.no_grad()
def predict(network: iUNet, slices: Slices, device: torch.device) -> Tensor:
    """Predicted labels (N, H, W) int64 of whole slices, on the CPU."""
    return network(slices.images.to(device)).argmax(1).cpu()


def organ_dice(prediction: Tensor, slices: Slices) -> dict[str, float]:
    """Dice coefficient of each organ over all slices together; NaN where neither has it."""
    values = dice_per_class(prediction, slices.labels, 1 + len(ORGANS))[1:]
    return dict(zip(ORGANS, values.tolist(), strict=True))
