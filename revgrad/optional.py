"""Import what only some users need, and say what to install when it is not there."""

from importlib import import_module
from types import ModuleType


class MissingExtraError(ImportError):
    """A module that belongs to one of revgrad's extras is not installed."""


def install_command(extra: str) -> str:
    """Return the command that installs one of revgrad's extras."""
    return f"pip install 'revgrad[{extra}]'"


def optional_import(module: str, extra: str) -> ModuleType:
    """Import `module`, which users get by installing the extra `extra`.

    Raises:
        MissingExtraError: The module's package is not installed. An installed package that fails
            while it is imported raises its own error, which says more.
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingExtraError(
            f"{package} is not installed; it comes with: {install_command(extra)}", name=package
        ) from error
