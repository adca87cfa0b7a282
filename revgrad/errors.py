"""The one error class of the core, which says where in a sequence it happened."""

from __future__ import annotations


class ReversibleError(RuntimeError):
    """Something that a reversible sequence cannot do, or must refuse to do silently wrong.

    Args:
        message: What was wrong and what is accepted.
        where: The layer at fault. A sequence fills it in for errors raised inside its layers.
    """

    def __init__(self, message: str, where: str | None = None) -> None:
        super().__init__(message, where)
        self.message = message
        self.where = where

    def __str__(self) -> str:
        return self.message if self.where is None else f"{self.where}: {self.message}"


def locate(error: BaseException, where: str) -> None:
    """Name the layer on an error that is passing through, without changing the error's type.

    An error from a sequence inside a sub-network gets the places of both, the outer one first.
    """
    if isinstance(error, ReversibleError):
        error.where = where if error.where is None else f"{where}, {error.where}"
    elif isinstance(error, Exception):
        error.add_note(note(where))


def note(where: str) -> str:
    """The line that tells the place of a foreign exception."""
    return f"(raised inside {where})"
