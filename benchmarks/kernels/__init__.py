"""What each kernel costs, as a multiple of copying its input: `revgrad bench kernels`."""

from .command import add_arguments, main

__all__ = ["add_arguments", "main"]
