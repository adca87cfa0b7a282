"""Checkpoints: one safetensors file each, written whole or not at all.

Weights, the optimizer's tensors and the facts (step, configuration, ...) stand in one file, so that
they can never disagree, and there is no pickle, so that reading one runs nothing. No random state
is kept: all draws are a function of seed and step (`seeding.py`).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from revgrad.models.segmenter import Segmenter
from revgrad.models.training.config import TrainConfig
from revgrad.models.training.registry import build_dataset, build_model
from revgrad.optional import optional_import

LATEST = "latest.safetensors"
BEST = "best.safetensors"
FORMAT = "revgrad-checkpoint-1"
_MODEL = "model."
_OPTIMIZER = "optimizer."


class CheckpointError(ValueError):
    """A file is no checkpoint, is damaged, or belongs to another network."""


class Checkpoint(NamedTuple):
    """What a file holds.

    Attributes:
        weights: the network's state dict.
        optimizer: the tensors of the optimizer's state, by "parameter.name"; empty in best.
        facts: "step", "config", "shape" of the network (spatial_dims, in_channels, out_channels),
            "best", the best validation so far, and what else was said.
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    facts: dict[str, Any]


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that at any moment either the old or the new one is there, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # the new name must be on disk too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save(
    path: Path,
    network: nn.Module,
    facts: dict[str, Any],
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Write a checkpoint atomically.

    Raises:
        ValueError: A weight is not finite: such a checkpoint must not replace a good one.
    """
    weights = network.state_dict()
    for name, value in weights.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"the weight {name} is not finite; {path.name} is left as it was")
    tensors = {_MODEL + name: value for name, value in weights.items()}
    if optimizer is not None:
        for index, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                tensors[f"{_OPTIMIZER}{index}.{name}"] = value
    # Clones, as safetensors refuses tensors that share memory.
    own = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    metadata = {"format": FORMAT, "facts": json.dumps(facts)}
    write_atomically(path, optional_import("safetensors.torch", "train").save(own, metadata))


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: The file is missing, damaged, or no checkpoint.
    """
    safetensors = optional_import("safetensors", "train")
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint")
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged, or no safetensors file ({error})") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: no checkpoint of revgrad train (expected format {FORMAT}, found "
            f"{metadata.get('format')})"
        )
    return Checkpoint(
        _under(_MODEL, tensors), _under(_OPTIMIZER, tensors), json.loads(metadata["facts"])
    )


def restore(
    checkpoint: Checkpoint, network: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Put a checkpoint's numbers into a network and its optimizer.

    Raises:
        CheckpointError: The network has other weights.
    """
    try:
        network.load_state_dict(checkpoint.weights)
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint is of another network: {error}") from error
    if optimizer is None:
        return
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in checkpoint.optimizer.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def load_segmenter(run: str | Path, which: str = "best") -> Segmenter:
    """The trained network of a run's folder, in eval mode on the CPU, ready for ``sample``.

    Args:
        run: the folder that `revgrad train` wrote.
        which: "best", by validation GED, or "latest".

    Raises:
        CheckpointError: There is no checkpoint, or it is damaged.
        ValueError: `which` is neither.
    """
    if which not in ("best", "latest"):
        raise ValueError(f"which must be 'best' or 'latest', not {which!r}")
    checkpoint = load(Path(run) / f"{which}.safetensors")
    config = TrainConfig.from_mapping(checkpoint.facts["config"], str(run))
    network = build_model(config.model, _Shape(*checkpoint.facts["shape"]), config.model_options)
    network.to(getattr(torch, "float64" if config.precision == "float64" else "float32"))
    restore(checkpoint, network)
    return network.eval()


def load_dataset(run: str | Path, split: str, which: str = "best") -> Any:
    """The part of the data that a run was configured with, by its best or latest checkpoint."""
    facts = load(Path(run) / f"{which}.safetensors").facts
    config = TrainConfig.from_mapping(facts["config"], str(run))
    return build_dataset(config.data, split, config.seed, config.data_options)


class _Shape:
    """Stands for the dataset where a network is rebuilt without it."""

    title = ""
    patients: tuple[str, ...] = ()

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int) -> None:
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.classes = tuple(map(str, range(out_channels)))

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Any:
        raise IndexError(index)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
