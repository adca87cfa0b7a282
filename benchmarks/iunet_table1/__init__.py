"""Table 1 of the iUNet's authors, memory and time by depth: `revgrad bench iunet-table1`.

Memory of one training step is measured in a fresh process for each variant and depth, time in one
process in which all variants take turns.
"""

from .command import add_arguments, main

__all__ = ["add_arguments", "main"]
