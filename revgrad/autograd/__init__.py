"""The tape: the only place in the package that recomputes."""

from revgrad.autograd.observers import ReconstructionCheck, check_reconstruction
from revgrad.autograd.recompute import is_recomputing
from revgrad.autograd.rewind import Evaluated, Rewind

__all__ = [
    "Evaluated",
    "ReconstructionCheck",
    "Rewind",
    "check_reconstruction",
    "is_recomputing",
]
