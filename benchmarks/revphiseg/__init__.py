"""PHiSeg and RevPHiSeg in memory and time: `revgrad bench revphiseg`.

Each point is measured in a fresh process: the peak of a training step with Adam, what autograd
saves, and the operations it counts. Time is taken at the first point, in one process in which all
variants take turns.
"""

from .command import add_arguments, main

__all__ = ["add_arguments", "main"]
