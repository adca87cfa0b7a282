"""Networks, losses, metrics, data and training for medical images."""

from revgrad.models.deterministic import DeterministicSegmenter
from revgrad.models.gaussian import DiagonalGaussian
from revgrad.models.iunet import iUNet
from revgrad.models.mixture import GaussianMixture
from revgrad.models.phiseg import PHiSeg, RevPHiSeg
from revgrad.models.probabilistic_unet import ProbabilisticUNet
from revgrad.models.segmenter import LossTerms, Segmenter
from revgrad.models.uncertainty import UncertaintyMaps, uncertainty_maps
from revgrad.models.unet import UNet

__all__ = [
    "DeterministicSegmenter",
    "DiagonalGaussian",
    "GaussianMixture",
    "LossTerms",
    "PHiSeg",
    "ProbabilisticUNet",
    "RevPHiSeg",
    "Segmenter",
    "UNet",
    "UncertaintyMaps",
    "iUNet",
    "uncertainty_maps",
]
