"""``revgrad train``: train a network on annotated data."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import torch

from revgrad.models.data import CaseDataset, CaseFolder, augmentation
from revgrad.models.training.batches import Augment, seed_noise
from revgrad.models.training.checkpoint import LATEST
from revgrad.models.training.config import (
    TrainConfig,
    add_flags,
    given_flags,
    read_file,
)
from revgrad.models.training.device import check_device
from revgrad.models.training.loop import CONFIG, Training, TrainingError
from revgrad.models.training.registry import build_dataset, build_model
from revgrad.models.training.seeding import Purpose
from revgrad.optional import optional_import
from revgrad.words import counted

# What may differ when a run goes on; everything else would make it another run.
CHANGEABLE = ("steps", "threads", "device", "output")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `revgrad train`."""
    parser.add_argument("--config", type=Path, help="JSON or TOML file of settings; flags win")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in the output folder"
    )
    add_flags(parser)


def main(args: argparse.Namespace) -> int:
    """Train, or go on with training."""
    try:
        config = resolve(args)
        training = prepare(config)
        if args.resume:
            training.resume()
        else:
            training.start()
        return _run(training)
    except (ValueError, OSError, TrainingError) as error:
        print(f"revgrad train: {error}", file=sys.stderr)
        return 1


def _run(training: Training) -> int:
    again = f"revgrad train: stopped; --resume --output {training.folder}"
    try:
        if not training.run():
            print(f"{again} goes on from step {training.step}", file=sys.stderr)
            return 130  # as a shell says it
    except KeyboardInterrupt:
        start = (
            "goes on from the last checkpoint"
            if (training.folder / LATEST).exists()
            else "starts anew, for there is no checkpoint yet (validate_every="
            f"{training.config.validate_every})"
        )
        print(f"\n{again} {start}", file=sys.stderr)
        return 130
    print(f"{training.folder}: trained to step {training.step}, best {json.dumps(training.best)}")
    return 0


def resolve(args: argparse.Namespace) -> TrainConfig:
    """The configuration from file and flags, or of the run that goes on.

    Raises:
        ValueError: A setting is unknown or wrong, or must not change in a run.
    """
    flags = given_flags(args)
    if not args.resume:
        values = read_file(args.config) if args.config else {}
        return TrainConfig.from_mapping({**values, **flags}, str(args.config or ""))
    if args.config:
        raise ValueError("--resume takes its settings from the run's folder, without --config")
    if fixed := sorted(set(flags) - set(CHANGEABLE)):
        raise ValueError(
            f"{', '.join(fixed)} must not change in a run; with --resume only "
            f"{', '.join(CHANGEABLE)} are accepted"
        )
    output = flags.get("output", TrainConfig().output)
    path = Path(output) / CONFIG
    if not path.is_file():
        raise ValueError(f"{output} holds no run to go on with: {CONFIG} is missing")
    before = read_file(path)
    if flags.get("steps", before["steps"]) != before["steps"] and (
        before["scheduler"] != "constant"
    ):
        raise ValueError(f"steps must not change with the {before['scheduler']} scheduler")
    return TrainConfig.from_mapping({**before, **flags, "output": output}, str(path))


def prepare(config: TrainConfig) -> Training:
    """Build the data, the network and the run of a configuration.

    Raises:
        ValueError: Something is unknown, does not fit, or is not there.
    """
    optional_import("safetensors", "train")  # before the time that training takes
    check_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    config, train = _training_data(config)
    val = build_dataset(config.data, "val", config.seed, config.data_options)
    seed_noise(config.seed, Purpose.WEIGHTS)
    network = build_model(config.model, train, config.model_options)
    print(f"{train.title}\n{counted(len(train), 'case')} to train on, {len(val)} to validate on")
    if (most := network.most_samples) is not None and most < config.validation_samples:
        print(f"{config.model} gives {most} samples: validated by {most}")
    return Training(config, network, train, val, _augmentation(config.augmentation))


def _training_data(config: TrainConfig) -> tuple[TrainConfig, CaseDataset]:
    """The data to train on, and the configuration with what was found out from a folder.

    Axes, and what CT is normalised by over all training cases, are found out once: validation, a
    resumed run and `revgrad evaluate` take them from the settings, whatever the folder holds then.
    """
    train = build_dataset(config.data, "train", config.seed, config.data_options)
    if not isinstance(train, CaseFolder):
        return config, train
    found: dict[str, Any] = {"spatial_dims": train.spatial_dims}
    if train.needs_fingerprint:
        found["fingerprint"] = [list(astuple(channel)) for channel in train.fingerprint]
    return replace(config, data_options={**config.data_options, **found}), train


def _augmentation(name: str) -> Augment | None:
    return None if name == "none" else augmentation(name)
