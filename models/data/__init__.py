"""Data sets that ship with the package, and readers for a user's own."""

from revgrad.models.data.array_pickle import ForbiddenPickleError
from revgrad.models.data.augment import Augmentation, augmentation
from revgrad.models.data.case import Case, CaseDataset
from revgrad.models.data.cityscapes import CityscapesFolder
from revgrad.models.data.dictionaries import CaseDictionaries, as_dictionary
from revgrad.models.data.folder import CaseFolder, Fingerprint, FolderError, check_folder
from revgrad.models.data.lidc import LIDC
from revgrad.models.data.lidc_pickle import LIDCPickle
from revgrad.models.data.phiseg_hdf5 import PHiSegHDF5
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
    "Augmentation",
    "Case",
    "CaseDataset",
    "CaseDictionaries",
    "CaseFolder",
    "CityscapesFolder",
    "Fingerprint",
    "FolderError",
    "ForbiddenPickleError",
    "LIDCPickle",
    "PHiSegHDF5",
    "ProstateLike",
    "Scenes",
    "Switch",
    "SwitchClasses",
    "as_dictionary",
    "augmentation",
    "centre_crop_or_pad",
    "check_folder",
    "prepare_slices",
    "resample_in_plane",
    "split_by_patient",
    "z_score",
]
