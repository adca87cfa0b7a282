"""Train a network: steps, validation, log and checkpoints."""

from __future__ import annotations

import json
import math
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from revgrad.models.data import CaseDataset
from revgrad.models.data.case import without_ignored
from revgrad.models.metrics import generalized_energy_distance
from revgrad.models.progress import Progress
from revgrad.models.segmenter import LossTerms, Segmenter
from revgrad.models.training.batches import Augment, Batches, seed_noise, spread
from revgrad.models.training.checkpoint import (
    BEST,
    LATEST,
    CheckpointError,
    load,
    restore,
    save,
    write_atomically,
)
from revgrad.models.training.config import TrainConfig, as_dict
from revgrad.models.training.peak import peak_bytes
from revgrad.models.training.seeding import Purpose
from revgrad.models.training.stopping import stop_requests

LOG = "log.jsonl"
CONFIG = "config.json"

_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


class TrainingError(RuntimeError):
    """Training cannot go on."""


class Training:
    """A run: a network, its data and a folder.

    All random numbers are a function of the seed and the step, so that a run that was killed and
    resumed ends in the same weights, to the bit.

    Args:
        config: the settings; `model` and the data are already built of them.
        network: moved to the device.
        train: cases to learn from.
        val: cases to validate on.
        augment: changes image and mask alike.
    """

    def __init__(
        self,
        config: TrainConfig,
        network: Segmenter,
        train: CaseDataset,
        val: CaseDataset,
        augment: Augment | None = None,
    ) -> None:
        self.config = config
        self.folder = Path(config.output)
        self.dtype = torch.float64 if config.precision == "float64" else torch.float32
        self.network = network.to(config.device, self.dtype)
        self.memory_format = torch.contiguous_format
        if config.channels_last:
            self.memory_format = _CHANNELS_LAST[network.spatial_dims]
            # torch's stubs do not know `memory_format` of modules.
            network.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        # True leaves what the network was built with: PHiSeg, say, stores on purpose.
        for module in network.modules():
            if not config.save_memory and hasattr(module, "save_memory"):
                setattr(module, "save_memory", False)  # noqa: B010
        self.optimizer = torch.optim.Adam(
            network.parameters(), config.lr, weight_decay=config.weight_decay
        )
        self.step = 0
        self.best: dict[str, Any] = {"ged": math.inf, "step": 0}
        self._batches = Batches(train, config.batch_size, config.seed, augment)
        self._val = val
        most = network.most_samples
        self._samples = min(config.validation_samples, most or config.validation_samples)

    def start(self) -> None:
        """Make the folder and write the configuration into it.

        Raises:
            FileExistsError: It holds a run already.
            ValueError: The first batch or the first case to validate on does not fit the network;
                nothing is written then.
        """
        images, masks = self._batches(0)
        self.network.check_masks(images.to(self.dtype), masks)
        self.network.check_image(self._val[0].image[None].to(self.dtype))
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (CONFIG, LATEST, LOG):
            if (self.folder / name).exists():
                raise FileExistsError(
                    f"{self.folder} already holds a run: go on with --resume, or name another "
                    "--output"
                )
        text = json.dumps(as_dict(self.config), indent=1)
        write_atomically(self.folder / CONFIG, f"{text}\n".encode())

    def resume(self) -> None:
        """Go on from the latest checkpoint, or from the beginning if none was written yet.

        Raises:
            CheckpointError: It is damaged, or of another network.
        """
        if (self.folder / LATEST).exists():
            checkpoint = load(self.folder / LATEST)
            restore(checkpoint, self.network, self.optimizer)
            self.step = checkpoint.facts["step"]
            best = checkpoint.facts["best"]
            self.best = {**best, "ged": math.inf if best["ged"] is None else best["ged"]}
        if self.step > self.config.steps:
            raise CheckpointError(
                f"{self.folder} is at step {self.step} already, beyond steps={self.config.steps}"
            )
        self._forget_later_lines()
        for unfinished in self.folder.glob(".*.tmp"):  # of a run that was killed in writing
            unfinished.unlink()

    def run(self) -> bool:
        """Take the steps that are left.

        Returns:
            Whether they were taken. False: a signal asked to stop (Ctrl-C, SIGTERM); the step under
            way was finished, and the latest checkpoint is of it.

        Raises:
            TrainingError: The loss is not finite. The latest checkpoint stays.
        """
        progress = Progress(self.config.steps, done=self.step)
        with stop_requests() as asked:
            while self.step < self.config.steps:
                due = self._advance(progress)
                if asked() and self.step < self.config.steps:
                    if not due:
                        self._save(LATEST, self._facts(), self.optimizer)
                    return False
        return True

    def _advance(self, progress: Progress) -> bool:
        """Take a step, log it, and validate where that is due; say whether it was."""
        begun = time.monotonic()
        terms = self.take_step()
        line = self._line(terms, time.monotonic() - begun)
        due = self.step % self.config.validate_every == 0 or self.step == self.config.steps
        if due:
            line["validation_ged"] = self.validate()
        # Before the checkpoint: a line too many is dropped by resume, one too few is lost.
        self._write(line)
        if due:
            self._keep(line["validation_ged"])
        progress(self.step, self._text(line))
        return due

    def take_step(self) -> LossTerms:
        """Take one step of the optimizer and count it."""
        images, masks = self._batches(self.step)
        images = images.to(self.config.device, self.dtype, memory_format=self.memory_format)
        self.network.train()
        seed_noise(self.config.seed, Purpose.NOISE, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * lr_factor(
                self.config.scheduler, self.step, self.config.steps
            )
        self.network.kl_factor = kl_factor(self.config.kl_warmup, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            terms = self.network(images, masks.to(self.config.device))
        if not math.isfinite(loss := float(terms.total.detach())):
            raise TrainingError(
                f"the loss of step {self.step + 1} is {loss}: training stopped. "
                f"{self.folder / LATEST} keeps the last good state, if there was one; try a "
                "smaller lr"
            )
        terms.total.backward()
        self.optimizer.step()
        self.step += 1
        return terms

    @torch.no_grad()
    def validate(self) -> float:
        """Mean squared GED over the validation cases, each time with the same random numbers."""
        self.network.eval()
        found = []
        for index in spread(len(self._val), self.config.validation_cases):
            case = self._val[index]
            seed_noise(self.config.seed, Purpose.VALIDATION, index)
            image = case.image[None].to(self.config.device, self.dtype)
            with self._autocast():
                logits = self.network.sample(image, self._samples)
            found.append(
                generalized_energy_distance(
                    without_ignored(case, logits[0].argmax(1).cpu()),
                    case.annotators,
                    num_classes=self.network.out_channels,
                    spatial_dims=self.network.spatial_dims,
                    annotator_weights=case.weights,
                )
            )
        return float(torch.stack(found).mean())

    def _keep(self, ged: float) -> None:
        """Write the latest checkpoint, and before it the best, which it speaks of.

        Killed in between, the run repeats this validation and writes the same best again.
        """
        facts = self._facts()
        if ged < self.best["ged"]:
            self.best = {"ged": ged, "step": self.step}
            facts = self._facts()
            self._save(BEST, facts, None)
        self._save(LATEST, facts, self.optimizer)

    def _save(self, name: str, facts: dict[str, Any], optimizer: Any) -> None:
        try:
            save(self.folder / name, self.network, facts, optimizer)
        except ValueError as error:
            raise TrainingError(f"after step {self.step} {error}") from error

    def _facts(self) -> dict[str, Any]:
        net = self.network
        ged = self.best["ged"]
        return {
            "step": self.step,
            "best": {**self.best, "ged": ged if math.isfinite(ged) else None},
            "config": as_dict(self.config),
            "shape": [net.spatial_dims, net.in_channels, net.out_channels],
        }

    def _line(self, terms: LossTerms, seconds: float) -> dict[str, Any]:
        return {
            "step": self.step,
            "loss": float(terms.total.detach()),
            "reconstruction": _numbers(terms.reconstruction),
            "kl": _numbers(terms.kl),
            "images_per_second": round(self.config.batch_size / seconds, 2),
            "peak_bytes": peak_bytes(self.config.device),
        }

    def _text(self, line: dict[str, Any]) -> str:
        best = self.best["ged"]
        parts = [
            f"loss {line['loss']:.4g}",
            "reconstruction " + "/".join(f"{value:.4g}" for value in line["reconstruction"]),
            "KL " + "/".join(f"{value:.3g}" for value in line["kl"]) if line["kl"] else "",
            f"GED {line['validation_ged']:.4f}" if "validation_ged" in line else "",
            f"best {best:.4f}" if math.isfinite(best) else "",
            f"{line['peak_bytes'] / 2**20:.0f} MiB",
            f"{line['images_per_second']:.1f} images/s",
        ]
        return "  ".join(filter(None, parts))

    def _write(self, line: dict[str, Any]) -> None:
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _forget_later_lines(self) -> None:
        """Drop what the log says of steps after the checkpoint, a half-written line included."""
        path = self.folder / LOG
        if path.exists():
            lines = path.read_bytes().splitlines(keepends=True)
            write_atomically(path, b"".join([line for line in lines if self._taken(line)]))

    def _taken(self, line: bytes) -> bool:
        """Whether a line of the log is whole, and of a step up to the checkpoint."""
        try:
            return line.endswith(b"\n") and bool(json.loads(line)["step"] <= self.step)
        except (ValueError, KeyError, TypeError):
            return False

    def _autocast(self) -> AbstractContextManager[Any]:
        enabled = self.config.precision == "bfloat16"
        return torch.autocast(torch.device(self.config.device).type, torch.bfloat16, enabled)


def lr_factor(scheduler: str, step: int, steps: int) -> float:
    """What the learning rate is multiplied with at a step, from 0."""
    share = step / steps
    if scheduler == "cosine":
        return 0.5 * (1 + math.cos(math.pi * share))
    if scheduler == "polynomial":  # the power is nnU-Net's
        return (1 - share) ** 0.9
    return 1.0


def kl_factor(warmup: int, step: int) -> float:
    """What KL divergences are multiplied with at a step, from 0 (Bowman et al. 2016)."""
    return min(1.0, step / warmup) if warmup else 1.0


def _numbers(values: Tensor) -> list[float]:
    return [float(value) for value in values]
