"""Arrays of a module: parameters are trained, buffers are only saved."""

from __future__ import annotations

from numpy.typing import ArrayLike

from invocupy.arrays import Array, check_array
from invocupy.autograd import Tensor
from invocupy.backends.memory import empty


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

    Attributes
    ----------
    fixed : bool
        Whether new values are written into ``data``, as a CUDA graph of a step needs it, or a new
        array takes its place, so that one that others hold stays as it is.
    """

    __slots__ = ("data", "fixed", "least")

    def __init__(self, data: Array, least: float | None = None) -> None:
        check_array("data", data)
        self.data, self.least, self.fixed = data, least, False

    def room(self) -> Array:
        """The array for a new value: ``data`` itself if it is fixed, else a new one."""
        return self.data if self.fixed else empty(self.data.shape, self.data.dtype, self.data)
