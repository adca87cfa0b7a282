"""A user's own cases: a folder of NIfTI files in nnU-Net's layout, any number of annotators."""

from revgrad.models.data.folder.case_folder import CaseFolder
from revgrad.models.data.folder.check import check_folder
from revgrad.models.data.folder.dataset_json import FolderError
from revgrad.models.data.folder.intensities import Fingerprint

__all__ = ["CaseFolder", "Fingerprint", "FolderError", "check_folder"]
