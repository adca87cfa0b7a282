"""Data sets that ship with the package, and readers for a user's own."""

from revgrad.models.data.array_pickle import ForbiddenPickleError
from revgrad.models.data.augment import Augmentation, augmentation
from revgrad.models.data.case import Case, CaseDataset
from revgrad.models.data.dictionaries import CaseDictionaries, as_dictionary
from revgrad.models.data.folder import CaseFolder, Fingerprint, FolderError, check_folder
from revgrad.models.data.lidc_pickle import LIDCPickle
from revgrad.models.data.phiseg_hdf5 import PHiSegHDF5

__all__ = [
    "Augmentation",
    "Case",
    "CaseDataset",
    "CaseDictionaries",
    "CaseFolder",
    "Fingerprint",
    "FolderError",
    "ForbiddenPickleError",
    "LIDCPickle",
    "PHiSegHDF5",
    "as_dictionary",
    "augmentation",
    "check_folder",
]
