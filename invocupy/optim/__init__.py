"""Stochastic gradient descent, clipping, and learning-rate schedules.

A schedule is a function of a step (from 0) and all steps of a run: it gives the factor of the
learning rate there, in [0, 1].
"""

from __future__ import annotations

from invocupy.optim.schedules import constant, cosine, one_cycle, step_decay, warm_up
from invocupy.optim.sgd import SGD, Group, clip_by_norm

__all__ = [
    "SGD", "Group", "clip_by_norm", "constant", "cosine", "one_cycle", "step_decay", "warm_up"
]  # fmt: skip
