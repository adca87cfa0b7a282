"""What a training run is made of, from flags and a file."""

from __future__ import annotations

import argparse
import dataclasses
import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEDULERS = ("constant", "cosine", "polynomial")
PRECISIONS = ("float32", "float64", "bfloat16")


def _setting(default: Any, text: str) -> Any:
    """A field with the help text of its flag."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainConfig:
    """The configuration of a run; all of it is written into the run's folder.

    The defaults of optimizer and batch are those of RevPHiSeg's code.

    Raises:
        ValueError: A value is out of range.
    """

    model: str = _setting("probabilistic-unet", "name of a network")
    model_options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "arguments of the network, as JSON"}
    )
    data: str = _setting("lidc", "name of a dataset, NAME:PATH of a file, or a folder")
    data_options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "arguments of the dataset, as JSON"}
    )
    augmentation: str = _setting("none", "name of a preset of revgrad.models.data.augmentation")
    output: str = _setting("revgrad-run", "folder of the run")
    steps: int = _setting(5000, "training steps")
    batch_size: int = _setting(12, "images of a step")
    lr: float = _setting(1e-3, "Adam's learning rate")
    weight_decay: float = _setting(1e-5, "Adam's weight decay")
    scheduler: str = _setting("constant", "of the learning rate: " + ", ".join(SCHEDULERS))
    kl_warmup: int = _setting(0, "steps in which the weight of KL divergences grows from 0")
    seed: int = _setting(0, "of weights, batches, annotators and draws")
    validate_every: int = _setting(500, "steps between validations and checkpoints")
    validation_samples: int = _setting(16, "samples of each image in a validation, at most")
    validation_cases: int = _setting(100, "images of a validation")
    threads: int = _setting(0, "CPU threads; 0 for as many as torch takes")
    device: str = _setting("cpu", "cpu, cuda or cuda:N")
    precision: str = _setting("float32", ", ".join(PRECISIONS) + " (autocast)")
    channels_last: bool = _setting(False, "true: tensors in channels-last order, faster on CPUs")
    save_memory: bool = _setting(True, "false: ordinary autograd of reversible networks")

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "validate_every", "validation_samples"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("seed", "kl_warmup", "threads", "validation_cases", "lr", "weight_decay"):
            _check(name, getattr(self, name), getattr(self, name) >= 0, "at least 0")
        for name, accepted in (("scheduler", SCHEDULERS), ("precision", PRECISIONS)):
            value = getattr(self, name)
            _check(name, value, value in accepted, "one of " + ", ".join(accepted))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str = "") -> TrainConfig:
        """Build it from keys and values.

        Args:
            values: what differs from the defaults.
            source: where they come from, for errors.

        Raises:
            ValueError: A key is unknown, or a value has the wrong type or is out of range.
        """
        before = f"{source}: " if source else ""
        known = {entry.name: entry for entry in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(
                f"{before}unknown {', '.join(unknown)}; accepted are {', '.join(known)}"
            )
        kinds = {name: type(default) for name, default in as_dict(cls()).items()}
        try:
            return cls(**{name: _typed(name, kinds[name], v) for name, v in values.items()})
        except ValueError as error:
            raise ValueError(f"{before}{error}") from error


def as_dict(config: TrainConfig) -> dict[str, Any]:
    """The configuration as JSON takes it."""
    return dataclasses.asdict(config)


def read_file(path: str | Path) -> dict[str, Any]:
    """Read a JSON or TOML file of settings.

    Raises:
        ValueError: It is neither, or is damaged.
    """
    path = Path(path)
    readers = {".json": json.loads, ".toml": tomllib.loads}
    if path.suffix not in readers:
        raise ValueError(f"{path}: a configuration is a .json or .toml file")
    try:
        values = readers[path.suffix](path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected settings by name, found {type(values).__name__}")
    return values


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each setting; those that are not given are not in the result."""
    default = as_dict(TrainConfig())
    for entry in dataclasses.fields(TrainConfig):
        value = default[entry.name]
        parser.add_argument(
            "--" + entry.name.replace("_", "-"),
            dest=entry.name,
            type=_reader(type(value)),
            default=argparse.SUPPRESS,
            metavar=entry.name.upper(),
            help=f"{entry.metadata['help']} ({json.dumps(value)})".replace("%", "%%"),
        )


def _reader(kind: type) -> Callable[[str], Any]:
    """What makes a flag's value of its text."""
    if kind not in (dict, bool):
        return kind

    def read(text: str) -> Any:
        example = 'an object in JSON, such as {"size": 64}' if kind is dict else "true or false"
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = None
        if type(value) is not kind:
            # argparse shows the words of this error alone.
            raise argparse.ArgumentTypeError(f"must be {example}, not {text!r}")
        return value

    return read


def given_flags(args: argparse.Namespace) -> dict[str, Any]:
    """The settings among parsed arguments."""
    names = {entry.name for entry in dataclasses.fields(TrainConfig)}
    return {name: value for name, value in vars(args).items() if name in names}


def _typed(name: str, kind: type, value: Any) -> Any:
    """The value if it is of the kind; whole numbers may stand for floats."""
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{name} must be {kind.__name__}, not {value!r}")
    return value


def _check(name: str, value: Any, right: bool, accepted: str) -> None:
    if not right:
        raise ValueError(f"{name} must be {accepted}, not {value!r}")
