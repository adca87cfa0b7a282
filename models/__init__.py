"""Networks, losses, metrics, data and training for medical images."""

from revgrad.models.gaussian import DiagonalGaussian
from revgrad.models.iunet import iUNet
from revgrad.models.phiseg import PHiSeg, RevPHiSeg
from revgrad.models.segmenter import LossTerms, Segmenter

__all__ = ["DiagonalGaussian", "LossTerms", "PHiSeg", "RevPHiSeg", "Segmenter", "iUNet"]
