"""Fixed-point numbers: sums of them can be taken back exactly, which those of floats cannot."""

from revgrad.fixed_point.grid import Grid
from revgrad.fixed_point.tensor import FixedPoint, to_fixed, to_float

__all__ = ["FixedPoint", "Grid", "to_fixed", "to_float"]
