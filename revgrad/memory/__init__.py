"""What a training step needs in memory: measured, by category, in bytes."""

from .measure import MemoryReport, measure
from .storages import live_bytes

__all__ = ["MemoryReport", "live_bytes", "measure"]
