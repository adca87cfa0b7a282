"""Data sets that ship with the package, and readers for a user's own."""

from revgrad.models.data.case import Case, CaseDataset
from revgrad.models.data.cityscapes import CityscapesFolder
from revgrad.models.data.lidc import LIDC
from revgrad.models.data.prostate import ProstateLike
from revgrad.models.data.scenes import Scenes
from revgrad.models.data.slices import (
    centre_crop_or_pad,
    prepare_slices,
    resample_in_plane,
    z_score,
)
from revgrad.models.data.splits import split_by_patient
from revgrad.models.data.switches import Switch, SwitchClasses

__all__ = [
    "LIDC",
    "Case",
    "CaseDataset",
    "CityscapesFolder",
    "ProstateLike",
    "Scenes",
    "Switch",
    "SwitchClasses",
    "centre_crop_or_pad",
    "prepare_slices",
    "resample_in_plane",
    "split_by_patient",
    "z_score",
]
