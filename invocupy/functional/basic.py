"""Arithmetic, reductions and shapes."""

from __future__ import annotations

import math
from typing import Any

from invocupy import ops
from invocupy.autograd import apply
from invocupy.ops.basic import Axis


def add(a: Any, b: Any) -> Any:
    """``a + b``, broadcast.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.add(np.ones(2), 1.0)
    array([2., 2.])
    """
    return apply(ops.add, a, b)


def subtract(a: Any, b: Any) -> Any:
    """``a - b``, broadcast.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.subtract(np.ones(2), 1.0)
    array([0., 0.])
    """
    return apply(ops.subtract, a, b)


def multiply(a: Any, b: Any) -> Any:
    """``a * b``, broadcast.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.multiply(np.ones(2), 3.0)
    array([3., 3.])
    """
    return apply(ops.multiply, a, b)


def divide(a: Any, b: Any) -> Any:
    """``a / b``, broadcast.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.divide(np.ones(2), 2.0)
    array([0.5, 0.5])
    """
    return apply(ops.divide, a, b)


def power(a: Any, b: Any) -> Any:
    """``a ** b``, broadcast.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.power(np.array([2.0, 3.0]), 2)
    array([4., 9.])
    """
    return apply(ops.power, a, b)


def maximum(a: Any, b: Any) -> Any:
    """The larger of two, broadcast; where they are equal each gets half of the gradient.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.maximum(np.array([-1.0, 2.0]), 0.0)
    array([0., 2.])
    """
    return apply(ops.maximum, a, b)


def matmul(a: Any, b: Any) -> Any:
    """``a @ b`` for 2 or more dimensions, broadcast over the leading ones.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.matmul(np.ones((1, 2)), np.ones((2, 1)))
    array([[2.]])
    """
    return apply(ops.matmul, a, b)


def negative(x: Any) -> Any:
    """``-x``.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.negative(np.ones(1))
    array([-1.])
    """
    return apply(ops.negative, x)


def absolute(x: Any) -> Any:
    """``|x|``; the gradient at 0 is 0.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.absolute(np.array([-2.0]))
    array([2.])
    """
    return apply(ops.absolute, x)


def exp(x: Any) -> Any:
    """``e ** x``.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.exp(np.zeros(1))
    array([1.])
    """
    return apply(ops.exp, x)


def log(x: Any) -> Any:
    """The natural logarithm.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.log(np.ones(1))
    array([0.])
    """
    return apply(ops.log, x)


def sqrt(x: Any) -> Any:
    """The square root.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.sqrt(np.array([4.0]))
    array([2.])
    """
    return apply(ops.sqrt, x)


def tanh(x: Any) -> Any:
    """The hyperbolic tangent.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.tanh(np.zeros(1))
    array([0.])
    """
    return apply(ops.tanh, x)


def relu(x: Any) -> Any:
    """``max(x, 0)``; NaN stays NaN, the gradient at 0 is 0.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.relu(np.array([-1.0, 2.0]))
    array([0., 2.])
    """
    return apply(ops.relu, x)


def sum(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:  # noqa: A001
    """The sum over ``axis`` (all axes by default).

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.sum(np.ones((2, 3)), axis=1)
    array([3., 3.])
    """
    return apply(ops.sum, x, axis=axis, keepdims=keepdims)


def mean(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """The mean over ``axis`` (all axes by default).

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.mean(np.ones((2, 3)), axis=0)
    array([1., 1., 1.])
    """
    return apply(ops.mean, x, axis=axis, keepdims=keepdims)


def max(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:  # noqa: A001
    """The largest value over ``axis``; equal ones share the gradient evenly.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.max(np.array([[1.0, 3.0], [2.0, 0.0]]), axis=1)
    array([3., 2.])
    """
    return apply(ops.max, x, axis=axis, keepdims=keepdims)


def reshape(x: Any, shape: tuple[int, ...]) -> Any:
    """The same elements in another shape; one size may be -1.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.reshape(np.zeros((2, 3)), (3, -1)).shape
    (3, 2)
    """
    return apply(ops.reshape, x, shape=shape)


def flatten(x: Any, start: int = 1) -> Any:
    """All axes from ``start`` on joined into one; the batch axis stays by default.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.flatten(np.zeros((2, 3, 4))).shape
    (2, 12)
    """
    shape = getattr(x, "shape", ())  # what has none is refused by name
    return apply(ops.reshape, x, shape=(*shape[:start], math.prod(shape[start:])))


def transpose(x: Any, axes: tuple[int, ...] | None = None) -> Any:
    """The axes in another order (reversed by default).

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.transpose(np.zeros((2, 3, 4)), (0, 2, 1)).shape
    (2, 4, 3)
    """
    return apply(ops.transpose, x, axes=axes)


def concatenate(parts: Any, axis: int = 0) -> Any:
    """The arrays or Tensors joined along ``axis``.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.concatenate([np.zeros((1, 2)), np.ones((1, 2))]).shape
    (2, 2)
    """
    return apply(ops.concatenate, *parts, axis=axis)
