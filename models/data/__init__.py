"""Data sets that ship with the package, and readers for a user's own."""

from revgrad.models.data.case import Case, CaseDataset
from revgrad.models.data.cityscapes import CityscapesFolder
from revgrad.models.data.scenes import Scenes
from revgrad.models.data.switches import Switch, SwitchClasses

__all__ = [
    "Case",
    "CaseDataset",
    "CityscapesFolder",
    "Scenes",
    "Switch",
    "SwitchClasses",
]
