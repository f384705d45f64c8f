"""Stochastic gradient descent, clipping, and learning-rate schedules.

A schedule is a function of the step (from 0) and the number of steps: it returns the factor of the
learning rate at that step, in [0, 1].
"""

from __future__ import annotations

from invocupy.optim.clipping import clip_by_norm
from invocupy.optim.schedules import constant, cosine, one_cycle, step_decay, warm_up
from invocupy.optim.sgd import SGD, Group

__all__ = [
    "SGD", "Group", "clip_by_norm", "constant", "cosine", "one_cycle", "step_decay", "warm_up"
]  # fmt: skip
