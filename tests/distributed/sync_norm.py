"""Batch norm over all processes: a stand-in for SyncBatchNorm, which has no CPU form."""

import torch
import torch.distributed as dist
from torch import nn

from revgrad import is_recomputing

collectives: list[str] = []  # what this process has waited for


class _Sum(torch.autograd.Function):
    """The sum over processes; its derivative is the sum of their gradients."""

    @staticmethod
    def forward(ctx, values):
        collectives.append("again" if is_recomputing() else "forward")
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad):
        collectives.append("backward")
        total = grad.clone()
        dist.all_reduce(total)
        return total


class SyncNorm(nn.Module):
    """Normalises channels by mean and variance over the batches of all processes.

    Attributes:
        alone: The process has the whole batch.
        count: How often the statistics were updated.
    """

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("count", torch.zeros(()))
        self.alone = False

    def forward(self, x):
        axes = (0, 2, 3)
        number = torch.full_like(self.weight, x[:, 0].numel()).detach()
        sums = torch.stack([x.sum(axes), x.square().sum(axes), number])
        total, squares, number = sums if self.alone else _Sum.apply(sums)
        mean = total / number
        variance = squares / number - mean.square()
        self.running_mean.lerp_(mean.detach(), 0.1)
        self.count.add_(1)
        scale = self.weight * (variance + 1e-5).rsqrt()
        return (x - mean[:, None, None]) * scale[:, None, None]
