"""Figures of ambiguous segmentation: sheets, curves and modes. Needs matplotlib.

Each function takes tensors or plain numbers and returns a matplotlib figure; `save` writes it.
"""

from revgrad.models.figures.canvas import save
from revgrad.models.figures.curves import Estimate, ged_against_n, read_log, training_curves
from revgrad.models.figures.modes import mode_shares
from revgrad.models.figures.sheet import sheet

__all__ = [
    "Estimate",
    "ged_against_n",
    "mode_shares",
    "read_log",
    "save",
    "sheet",
    "training_curves",
]
