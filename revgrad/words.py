"""Words for numbers, in what is printed."""


def counted(number: int, noun: str) -> str:
    """``1 case``, ``2 cases``: nouns whose plural is an s."""
    return f"{number} {noun}{'s' * (number != 1)}"
