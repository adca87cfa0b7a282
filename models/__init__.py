"""Networks, losses, metrics, data and training for medical images."""

from revgrad.models.gaussian import DiagonalGaussian
from revgrad.models.iunet import iUNet
from revgrad.models.segmenter import LossTerms, Segmenter
from revgrad.models.uncertainty import UncertaintyMaps, uncertainty_maps

__all__ = [
    "DiagonalGaussian",
    "LossTerms",
    "Segmenter",
    "UncertaintyMaps",
    "iUNet",
    "uncertainty_maps",
]
