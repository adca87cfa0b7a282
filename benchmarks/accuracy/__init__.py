"""How far gradients are off, by depth: `revgrad bench accuracy`.

Two questions are asked of each way of running a sequence. Does it give the gradient of plain
autograd of the same function? And how far is its gradient from that in float64?
"""

from .command import add_arguments, main

__all__ = ["add_arguments", "main"]
