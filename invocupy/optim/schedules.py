"""Learning-rate schedules: functions of the step (from 0) and the number of steps.

Each returns the factor of the learning rate at that step, in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from invocupy.docstrings import documented


@documented
def constant(step: int, total: int) -> float:
    """The factor 1 at every step.

    >>> constant(3, 10)
    1.0
    """
    return 1.0


@documented
def step_decay(
    step: int, total: int, milestones: Sequence[float] = (0.5, 0.75), factor: float = 0.1
) -> float:
    """A factor that is multiplied by ``factor`` at each milestone.

    Parameters
    ----------
    milestones
        Fractions of the run, in [0, 1]; the default is that of He et al., arXiv 1512.03385, section
        4.2 (up to the rounding of its epochs).
    factor
        What each milestone multiplies the rate by.

    >>> [round(step_decay(step, 4), 3) for step in range(4)]
    [1.0, 1.0, 0.1, 0.01]
    """
    return factor ** sum(step >= share * total for share in milestones)


@documented
def cosine(step: int, total: int) -> float:
    """A factor that falls from 1 to 0 along half a cosine.

    >>> [round(cosine(step, 4), 3) for step in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    return 0.5 * (1 + math.cos(math.pi * min(step / max(total, 1), 1.0)))


@documented
def one_cycle(step: int, total: int, rise: float = 0.3, start: float = 0.04) -> float:
    """A factor that rises from ``start`` to 1, then falls to 0, both along half a cosine.

    Parameters
    ----------
    rise
        The fraction of the run in which the factor rises.
    start
        The first factor.

    >>> [round(one_cycle(step, 10), 2) for step in (0, 3, 10)]
    [0.04, 1.0, 0.0]
    """
    top = max(rise * total, 1e-9)
    if step < top:
        return start + (1 - start) * 0.5 * (1 - math.cos(math.pi * step / top))
    progress = (step - top) / max(total - top, 1e-9)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


@documented
def warm_up(schedule: Callable[[int, int], float], step: int, total: int, warmup: int) -> float:
    """A schedule after ``warmup`` steps in which the factor rises linearly to its first value.

    Parameters
    ----------
    schedule
        Any schedule of this module; it gets the steps after the warm-up.
    warmup
        The number of warm-up steps.

    >>> [round(warm_up(cosine, step, 6, 2), 2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.85, 0.5, 0.15]
    """
    rest = max(total - warmup, 1)
    if step < warmup:
        return schedule(0, rest) * (step + 1) / warmup
    return schedule(step - warmup, rest)
