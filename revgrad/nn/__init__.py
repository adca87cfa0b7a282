"""Modules that a user composes: reversible layers and the sequence that runs them."""

from revgrad.nn.actnorm import ActNorm
from revgrad.nn.affine import AffineCoupling
from revgrad.nn.convert import convert
from revgrad.nn.convert_report import Conversion, ConvertReport
from revgrad.nn.coupling import AdditiveCoupling
from revgrad.nn.fraction_bits import FractionBits, suggest_fraction_bits
from revgrad.nn.fuse import FuseReport, fuse
from revgrad.nn.invertible_conv import Invertible1x1Conv, PLUMatrix
from revgrad.nn.layer import IsometricLayer, ReversibleLayer
from revgrad.nn.mixing import ChannelMixing
from revgrad.nn.norm_act import NormAct
from revgrad.nn.orthogonal import OrthogonalMatrices
from revgrad.nn.orthogonal_resampling import OrthogonalDownsample, OrthogonalUpsample
from revgrad.nn.recompute import Recompute
from revgrad.nn.resampling import (
    HaarDownsample,
    HaarUpsample,
    PixelShuffleDownsample,
    PixelShuffleUpsample,
)
from revgrad.nn.sequence import ReversibleSequence
from revgrad.nn.skip import JoinSkip, SplitSkip
from revgrad.nn.tap import Tap

__all__ = [
    "ActNorm",
    "AdditiveCoupling",
    "AffineCoupling",
    "ChannelMixing",
    "Conversion",
    "ConvertReport",
    "FractionBits",
    "FuseReport",
    "HaarDownsample",
    "HaarUpsample",
    "Invertible1x1Conv",
    "IsometricLayer",
    "JoinSkip",
    "NormAct",
    "OrthogonalDownsample",
    "OrthogonalMatrices",
    "OrthogonalUpsample",
    "PLUMatrix",
    "PixelShuffleDownsample",
    "PixelShuffleUpsample",
    "Recompute",
    "ReversibleLayer",
    "ReversibleSequence",
    "SplitSkip",
    "Tap",
    "convert",
    "fuse",
    "suggest_fraction_bits",
]
