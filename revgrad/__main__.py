"""Make `python -m revgrad` the same as the command `revgrad`."""

import sys

from revgrad.cli import main

if __name__ == "__main__":
    sys.exit(main())
