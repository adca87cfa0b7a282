"""The tape: the only place in the package that recomputes."""

from revgrad.autograd.recompute import is_recomputing
from revgrad.autograd.rewind import Evaluated, Rewind

__all__ = ["Evaluated", "Rewind", "is_recomputing"]
