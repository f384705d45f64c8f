"""Mean and covariance of few channels, from which a norm after a 1x1 convolution follows.

The blocks of the article and ``expansion`` share these kernels; ``spread.cuh`` has the algebra.
"""

from __future__ import annotations

from invocupy.arrays import Array
from invocupy.backends import cuda
from invocupy.backends.cuda import launch

_ROWS = 256  # of partial sums of x: each block of the next kernel adds them up


def spread(macros: cuda.Macros, x: Array, batch: int, per_plane: int) -> tuple[Array, int]:
    """Partial mean and covariance of x, and how many rows of them there are."""
    c, vectors = x.shape[1], batch * per_plane
    rows = max(1, min(_ROWS, vectors // 128))
    partial = cuda.workspace(x, 1 + c + c * c, rows)
    launch("spread/spread", macros, rows * 32, x, partial, batch, per_plane, rows, over=vectors)
    return partial, rows
