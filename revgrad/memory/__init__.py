"""What a training step needs in memory: measured or estimated, by category, in bytes."""

from .estimate import MemoryEstimate, estimate
from .measure import MemoryReport, measure
from .plan import Plan, plan
from .storages import live_bytes
from .trial import is_trial_run

__all__ = [
    "MemoryEstimate",
    "MemoryReport",
    "Plan",
    "estimate",
    "is_trial_run",
    "live_bytes",
    "measure",
    "plan",
]
