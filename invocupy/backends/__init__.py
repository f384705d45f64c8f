"""The kernels of involution, one module per kind of machine, all with the same six functions.

======================  ==========================================================================
module                  what it is
======================  ==========================================================================
``reference``           plain array code for NumPy and CuPy: the specification
``cpu``                 NumPy arrays, Numba
``cuda``                CuPy arrays, the ``.cu`` files beside it
======================  ==========================================================================

The functions, with ``g`` a :class:`~invocupy.geometry.Geometry`::

    forward(x, kernel, g, out)                  out[n,c,i,j] = sum_uv kernel[n,c//(C/G),u,v,i,j]
                                                               * x[n,c,i*sh+u*dh-ph,j*sw+v*dw-pw]
    grad_x(grad, kernel, g, out)                gradient of x from the gradient of the result
    grad_kernel(grad, x, g, out)                gradient of kernel
    fused_forward(x, features, weight, bias, g, out)
    fused_grad_x(grad, features, weight, bias, g, out)
    fused_grad_span(grad, x, features, weight, g, grad_features, grad_weight, grad_bias)

where the fused kernel is ``einsum("kf,nfij->nkij", weight, features) + bias`` reshaped to
(N, G, Kh, Kw, Ho, Wo) and never stored whole.

Rules. Arrays come in C-contiguous, of one floating dtype that the backend knows, of the geometry's
shapes, on one device; ``out`` and the ``grad_*`` results are filled completely and never read.
Inputs are never written. No checks, no state that changes a result, gathers only: the same call
gives the same bits. Half types accumulate in float32.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

FUNCTIONS = (
    "forward",
    "grad_x",
    "grad_kernel",
    "fused_forward",
    "fused_grad_x",
    "fused_grad_span",
)


def of(array: Any) -> ModuleType:
    """The backend for this array, imported when first needed (Numba and CuPy are slow to load)."""
    return import_module(f"{__name__}.{'cpu' if isinstance(array, np.ndarray) else 'cuda'}")
