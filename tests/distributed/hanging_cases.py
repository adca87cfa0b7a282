"""Cases of which one never ends, to test `pair` itself."""

import time

from .pair import main

CASES = {"hangs": lambda rank: time.sleep(600 * rank), "after it": lambda rank: None}

if __name__ == "__main__":
    main(CASES)
