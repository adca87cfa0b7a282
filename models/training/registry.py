"""Networks and datasets by name, imported when they are asked for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from revgrad.models.data import CaseDataset
from revgrad.models.segmenter import Segmenter

# Name -> module and class. A network takes (spatial_dims, in_channels, out_channels, **options).
MODELS = {
    "unet": "revgrad.models.unet:UNet",
    "probabilistic-unet": "revgrad.models.probabilistic_unet:ProbabilisticUNet",
    "phiseg": "revgrad.models.phiseg:PHiSeg",
    "revphiseg": "revgrad.models.phiseg:RevPHiSeg",
    "dropout-unet": "revgrad.models.baselines:DropoutUNet",
    "unet-ensemble": "revgrad.models.baselines:UNetEnsemble",
    "m-heads": "revgrad.models.baselines:MHeads",
    "image2image-vae": "revgrad.models.baselines:Image2ImageVAE",
}
# A dataset takes (split, seed=, **options).
DATA = {
    "lidc": "revgrad.models.data:LIDC",
    "scenes": "revgrad.models.data:Scenes",
    "prostate": "revgrad.models.data:ProstateLike",
}
FOLDER = "revgrad.models.data:CaseFolder"
# A dataset in one file, NAME:PATH, takes (path, split, seed=, **options).
FILES = {"lidc-pickle": "revgrad.models.data:LIDCPickle"}


def build_model(name: str, dataset: CaseDataset, options: dict[str, Any]) -> Segmenter:
    """Build a network that fits a dataset's axes, channels and classes.

    Raises:
        ValueError: There is no such network, or it does not take the options.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; accepted are {', '.join(MODELS)}")
    shape = (dataset.spatial_dims, dataset.in_channels, len(dataset.classes))
    network: Segmenter = _call(MODELS[name], "model_options", *shape, **options)
    return network


def build_dataset(name: str, split: str, seed: int, options: dict[str, Any]) -> CaseDataset:
    """Open a part of a dataset: its name, NAME:PATH of a file, or a folder.

    Raises:
        ValueError: There is no such dataset, or it does not take the options.
    """
    options = {"seed": seed, **options, "split": split}
    kind, _, path = name.partition(":")
    if name in DATA:
        found = _call(DATA[name], "data_options", **options)
    elif kind in FILES and path:
        found = _call(FILES[kind], "data_options", path, **options)
    elif Path(name).is_dir():
        found = _call(FOLDER, "data_options", name, **options)
    else:
        files = ", ".join(f"{kind}:PATH" for kind in FILES)
        raise ValueError(
            f"unknown data {name!r}; accepted are {', '.join(DATA)}, {files} and an existing folder"
        )
    if len(found) == 0:
        raise ValueError(f"the {split} part of {name} has no case")
    dataset: CaseDataset = found
    return dataset


def _call(target: str, settings: str, *args: Any, **options: Any) -> Any:
    module, _, name = target.partition(":")
    made = getattr(import_module(module), name)
    # JSON has lists where Python has tuples.
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    try:
        return made(*args, **options)
    except TypeError as error:
        raise ValueError(f"{settings} do not fit {name}: {error}") from error
