"""A whole involution block as one operator, which never stores the wide hidden layer.

The block of the article's network is, on a stream x of few channels,

    hidden = relu(norm(expand(x)))                  expand, reduce, span, project: 1x1 convolutions
    kernel = span(relu(norm(reduce(hidden))))
    y = x + relu(norm(project(involution(hidden, kernel))))

Three facts make it small:

- expand is linear, so mean and variance of its result follow from the mean and covariance of x:
  the norm folds into its weights, and hidden is a function of x at the same pixel alone;
- involution uses one kernel for all channels of a group, and project is linear, so project can go
  first, group by group: instead of D channels, groups * O go through the involution, and their sum
  over the groups is what project would have given;
- so both readers of hidden are linear maps at each pixel, and the part of the block that is D wide
  is a perceptron (:mod:`invocupy.backends.reference.perceptron`) whose hidden layer stays in cache.

Training keeps only x, the involution's projected result and, unless they are recomputed, the
perceptron's results for the gradients. In evaluation all norms are known beforehand, so the whole
block is one pass over x (:mod:`invocupy.backends.reference.involution_block`), and only x is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import starmap
from typing import Any

from invocupy.arrays import Array, cast_like, is_cupy
from invocupy.geometry import IntOrTuple, per_axis
from invocupy.ops.block_steps import NAMES, Block, Moments
from invocupy.ops.block_whole import WholeBlock
from invocupy.ops.declaration import Result, Vjp
from invocupy.ops.memo import each
from invocupy.ops.ranks import Comm


def involution_block(
    x: Array,
    *parameters: Array,
    kernel_size: IntOrTuple,
    dilation: IntOrTuple = 1,
    eps: tuple[float, float, float] = (1e-5, 1e-5, 1e-5),
    moments: tuple[Moments, Moments, Moments] | None = None,
    observe: Callable[[tuple[Moments, Moments, Moments], Any], None] | None = None,
    recompute: bool = True,
    relu: bool = True,
    comm: Comm | None = None,
) -> Result:
    """The block of the module's docstring on x (N, C, H, W), with N, C, H, W >= 1.

    Parameters
    ----------
    x : array (N, C, H, W), float
    *parameters : 14 arrays
        Of expand, its norm, reduce, its norm, span, project and its norm: weight and bias each.
        Weights of the convolutions are (out, in, 1, 1): C to D, D to F, F to G*Kh*Kw, D to C
        channels, where G divides D; all others (out,).
    kernel_size, dilation : int or pair
        Of the involution, whose padding keeps the size.
    eps : three floats
    moments : three pairs (mean, var), optional
        Of the norms, in evaluation; those of the batch otherwise.
    observe : callable, optional
        Called with the three pairs (mean, var) that were used, and the number of values per
        channel.
    recompute : bool
        In training, recompute the perceptron's results (F + G*C channels) for the gradients. If
        they are stored, a step takes about a tenth less time and several times the memory. On a GPU
        they are always stored.
    relu : bool
        Whether a ReLU follows the last norm.
    comm : communicator, optional
        Without ``moments``, the batch is that of all ranks together: three messages forward, and
        three backward. Then N may be 0, and gradients of parameters are those of this rank's share.

    Raises
    ------
    ValueError
        For an empty x, and for weights that do not fit each other or x.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> expand, reduce, span, project = (8, 3, 1, 1), (2, 8, 1, 1), (18, 2, 1, 1), (3, 8, 1, 1)
    >>> shapes = [expand, *[(8,)] * 3, reduce, *[(2,)] * 3, span, (18,), project, *[(3,)] * 3]
    >>> parameters = (rng.standard_normal(shape) for shape in shapes)
    >>> y, vjps = involution_block(rng.standard_normal((2, 3, 4, 5)), *parameters, kernel_size=3)
    >>> y.shape, len(vjps)
    ((2, 3, 4, 5), 15)
    """
    if len(parameters) != len(NAMES):
        raise TypeError(f"a block has {len(NAMES)} parameters, got {len(parameters)}")
    size = per_axis("kernel_size", kernel_size, 1)
    whole = is_cupy(x) and moments is None and comm is None
    block = (WholeBlock if whole else Block)(
        x, parameters, size, dilation, eps, moments, relu, None if moments else comm
    )
    value = block.forward(recompute)
    if observe is not None:
        observe(block.moments, block.count)
    gradients = each(block.backward)

    def vjp(i: int, operand: Array) -> Vjp:
        def gradient(grad: Array) -> Array:
            found = gradients(grad, i)
            # A view would not be the leaf's own.
            whole = found if found.shape == operand.shape else found.reshape(operand.shape)
            return cast_like(whole, operand)

        return gradient

    return cast_like(value, x), tuple(starmap(vjp, enumerate((x, *parameters))))
