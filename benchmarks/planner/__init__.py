"""Memory against time of a sequence for a row of budgets: `revgrad bench planner`.

Schedules found by `revgrad.memory.plan` beside what PyTorch has for the purpose: checkpointing some
of the couplings, checkpointing that keeps what convolutions give, and torch.compile's budget.
"""

from .command import add_arguments, main

__all__ = ["add_arguments", "main"]
