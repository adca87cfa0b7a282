"""What a training step needs in memory: measured or estimated, by category, in bytes."""

from .estimate import MemoryEstimate, estimate
from .measure import MemoryReport, measure
from .storages import live_bytes

__all__ = ["MemoryEstimate", "MemoryReport", "estimate", "live_bytes", "measure"]
