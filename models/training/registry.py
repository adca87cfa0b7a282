"""Networks and datasets by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from revgrad.models import phiseg, probabilistic_unet
from revgrad.models.baselines import DropoutUNet, Image2ImageVAE, MHeads, UNetEnsemble
from revgrad.models.baselines.independent_pixels import independent_pixels_of_unet
from revgrad.models.data import (
    LIDC,
    CaseDataset,
    CaseFolder,
    CityscapesFolder,
    LIDCPickle,
    PHiSegHDF5,
    ProstateLike,
    Scenes,
)
from revgrad.models.deterministic import iunet_segmenter
from revgrad.models.iunet import iUNet
from revgrad.models.segmenter import Segmenter
from revgrad.models.unet import UNet

# Of these all samples are the same.
DETERMINISTIC: dict[str, Callable[..., Segmenter]] = {"unet": UNet, "iunet": iunet_segmenter}
# Each is called with (spatial_dims, in_channels, out_channels, **options).
MODELS: dict[str, Callable[..., Segmenter]] = {
    **DETERMINISTIC,
    **probabilistic_unet.PRESETS,
    **phiseg.PRESETS,
    "dropout-unet": DropoutUNet,
    "unet-ensemble": UNetEnsemble,
    "m-heads": MHeads,
    "image2image-vae": Image2ImageVAE,
    "independent-pixels": independent_pixels_of_unet,
}
# What gets the options that a network does not name itself.
FURTHER: dict[Callable[..., Segmenter], Callable[..., Any]] = {
    iunet_segmenter: iUNet,
    phiseg.RevPHiSeg: phiseg.PHiSeg,
    DropoutUNet: UNet,
    UNetEnsemble: UNet,
    MHeads: UNet,
    Image2ImageVAE: probabilistic_unet.ProbabilisticUNet,
    independent_pixels_of_unet: UNet,
}
# Of these it sets itself.
SET: dict[Callable[..., Segmenter], str] = {Image2ImageVAE: "conditional_prior"}
# Called with (split=, seed=, **options).
DATA: dict[str, Callable[..., CaseDataset]] = {
    "lidc": LIDC,
    "scenes": Scenes,
    "prostate": ProstateLike,
}
# NAME:PATH is called with (path, split=, **options), and seed= where the split is not the file's.
FILES: dict[str, Callable[..., CaseDataset]] = {
    "lidc-pickle": LIDCPickle,
    "phiseg-hdf5": PHiSegHDF5,
    "cityscapes": CityscapesFolder,
}


def build_model(name: str, dataset: CaseDataset, options: dict[str, Any]) -> Segmenter:
    """Build a network that fits a dataset's axes, channels and classes.

    Raises:
        ValueError: There is no such network, or it does not take the options.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; accepted are {', '.join(MODELS)}")
    shape = (dataset.spatial_dims, dataset.in_channels, len(dataset.classes))
    network: Segmenter = _call(name, MODELS[name], "model_options", *shape, **options)
    return network


def build_dataset(name: str, split: str, seed: int, options: dict[str, Any]) -> CaseDataset:
    """Open a part of a dataset: its name, NAME:PATH of a file, or a folder.

    Raises:
        ValueError: There is no such dataset, or it does not take the options.
    """
    made, given = _find(name)
    if "split" in options:
        raise ValueError("data_options must not have a split: training, validation and test differ")
    options = {**seeded(name, seed, options), "split": split}
    dataset: CaseDataset = _call(name, made, "data_options", *given, **options)
    if len(dataset) == 0:
        raise ValueError(f"the {split} part of {name} has no case")
    return dataset


def seeded(name: str, seed: int, options: dict[str, Any]) -> dict[str, Any]:
    """The options with a run's seed of the split, unless they have one or the split is the file's.

    Raises:
        ValueError: There is no such dataset.
    """
    made, _ = _find(name)
    drawn = "seed" in inspect.signature(made).parameters
    return {"seed": seed, **options} if drawn else dict(options)


def _find(name: str) -> tuple[Callable[..., CaseDataset], tuple[str, ...]]:
    """What makes a dataset, and its first arguments."""
    kind, _, path = name.partition(":")
    if name in DATA:
        return DATA[name], ()
    if kind in FILES and path:
        return FILES[kind], (path,)
    if Path(name).is_dir():
        return CaseFolder, (name,)
    files = ", ".join(f"{kind}:PATH" for kind in FILES)
    raise ValueError(
        f"unknown data {name!r}; accepted are {', '.join(DATA)}, {files} and an existing folder"
    )


def _call(name: str, made: Callable[..., Any], settings: str, *args: Any, **options: Any) -> Any:
    # JSON has lists where Python has tuples.
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    try:
        return made(*args, **options)
    except TypeError as error:
        accepted = _accepted(made, len(args)) if "keyword argument" in str(error) else ""
        raise ValueError(f"{settings} do not fit {name}: {error}{accepted}") from error


def _accepted(made: Callable[..., Any], given: int) -> str:
    """Which options there are after the arguments that are given anyway, for an error."""
    origin = made.func if isinstance(made, partial) else made
    takers = [made, FURTHER[origin]] if origin in FURTHER else [made]
    found = [p for taker in takers for p in [*inspect.signature(taker).parameters.values()][given:]]
    names = dict.fromkeys(p.name for p in found if p.kind is not p.VAR_KEYWORD)
    hidden = ("split", SET.get(origin))
    return f"; accepted are {', '.join(name for name in names if name not in hidden)}"
