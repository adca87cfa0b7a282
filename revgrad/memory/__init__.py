"""What a training step needs in memory: measured or estimated, by category, in bytes."""

from .estimate import MemoryEstimate, estimate
from .measure import MemoryReport, measure
from .plan import Plan, plan
from .storages import live_bytes

__all__ = ["MemoryEstimate", "MemoryReport", "Plan", "estimate", "live_bytes", "measure", "plan"]
