"""What fits into a budget of memory: `revgrad bench --memory 12GB`.

The largest batch of images and the largest 3D patch that each way of training the same network can
take, measured on a GPU and estimated without one.
"""

from .command import add_arguments, main

__all__ = ["add_arguments", "main"]
