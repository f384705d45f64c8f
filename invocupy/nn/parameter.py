"""Arrays of a module: parameters are trained, buffers are only saved."""

from __future__ import annotations

from numpy.typing import ArrayLike

from invocupy.arrays import Array
from invocupy.autograd import Tensor


class Parameter(Tensor):
    """A trainable Tensor of a module: always a leaf that requires a gradient.

    Parameters
    ----------
    data : array_like, floating
        The initial value.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import nn
    >>> nn.Parameter(np.zeros(3)).requires_grad
    True
    """

    __slots__ = ()

    def __init__(self, data: ArrayLike) -> None:
        super().__init__(data, requires_grad=True)


class Buffer:
    """A named array of a module that is saved but not trained, such as running statistics.

    Parameters
    ----------
    data : array
        The value.
    least : float, optional
        The smallest value that ``load_state_dict`` accepts; then NaN is an error, too.
    """

    __slots__ = ("data", "least")

    def __init__(self, data: Array, least: float | None = None) -> None:
        self.data, self.least = data, least
