"""Data sets that ship with the package, and readers for a user's own."""

from revgrad.models.data.case import Case, CaseDataset
from revgrad.models.data.dictionaries import CaseDictionaries, as_dictionary
from revgrad.models.data.folder import CaseFolder, Fingerprint, FolderError, check_folder

__all__ = [
    "Case",
    "CaseDataset",
    "CaseDictionaries",
    "CaseFolder",
    "Fingerprint",
    "FolderError",
    "as_dictionary",
    "check_folder",
]
