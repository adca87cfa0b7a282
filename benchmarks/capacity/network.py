"""The network that has to fit: the same for every method, but for how its couplings are run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from revgrad.benchmarks.capacity.settings import Question, Settings
from revgrad.benchmarks.peers import ADAPTORS
from revgrad.benchmarks.sequence import settings as sequence
from revgrad.benchmarks.sequence.workload import couplings

OPTIMIZER = torch.optim.AdamW
_CONVOLUTION: dict[int, type[nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}


def network(method: str, question: Question, settings: Settings) -> nn.Module:
    """A convolution, the couplings and a classifying convolution, for images of one channel."""
    dims, channels = question.spatial_dims, settings.channels
    body = ADAPTORS[method].wrap(
        couplings(sequence.Settings(channels=channels, spatial_dims=dims), settings.depth)
    )
    convolution = _CONVOLUTION[dims]
    return nn.Sequential(
        convolution(1, channels, 3, padding=1), body, convolution(channels, 2, 1)
    ).to(settings.device)


def loss(output: Tensor) -> Tensor:
    """A loss that needs no labels."""
    return output.square().mean()


def autocast_type(settings: Settings) -> torch.dtype | None:
    """To which type autocast casts, or None."""
    return torch.bfloat16 if settings.dtype == "bfloat16" else None


class Step:
    """Training steps of a network."""

    def __init__(self, method: str, question: Question, settings: Settings, size: int) -> None:
        self._model = network(method, question, settings)
        self._optimizer = OPTIMIZER(self._model.parameters())
        self._settings = settings
        self._x = torch.randn(question.shape(size), device=settings.device)

    def __call__(self) -> None:
        dtype = autocast_type(self._settings)
        self._optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self._settings.device, dtype, enabled=dtype is not None):
            value = loss(self._model(self._x))
        value.backward()
        self._optimizer.step()
