"""A small network with a latent and small data on which annotators disagree."""

from importlib import import_module
from pathlib import Path

import pytest

from revgrad.models.training import registry

TOYS = Path(__file__).with_name("toys.py")


@pytest.fixture
def toys(monkeypatch):
    """The module of toys, known to the registry as `disc-net` and `discs`."""
    monkeypatch.syspath_prepend(str(TOYS.parent))
    toys = import_module("toys")
    toys.register(registry)
    yield toys
    registry.MODELS.pop("disc-net")
    registry.DATA.pop("discs")
