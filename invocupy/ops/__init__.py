"""Every differentiable operator as a pure function of arrays.

``op(*arrays, **options) -> (value, vjps)``

``vjps`` has one function for each array argument; ``vjp(grad)`` is the gradient of that argument,
with its shape and dtype, given the gradient of the value. A vjp is called only if that gradient is
needed. Values for backward are closure variables: there is no context object and no Tensor, so
adapters for other frameworks and tests use an op without the tape. Vjps share common work within
:func:`invocupy.ops.memo.sharing`, where the tape calls them.

Rules. Inputs and gradients are never written to. A vjp returns a new array, ``grad`` itself or a
view of it, never an array that it keeps. Arguments that may be ``None`` or a Python number get a
vjp too; it is not called.

The docstring of an op is that of its public function in :mod:`invocupy.functional`, which takes
Tensors too and returns the value alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from invocupy.ops import (
    attention,
    convolution,
    dropout,
    elementwise,
    loss,
    pooling,
    reductions,
    shapes,
)
from invocupy.ops.declaration import OPS as OPS
from invocupy.ops.declaration import Result
from invocupy.ops.involution import fused_involution as fused_involution
from invocupy.ops.involution import fused_involution_backward as fused_involution_backward
from invocupy.ops.involution import involution as involution
from invocupy.ops.involution import involution_backward as involution_backward
from invocupy.ops.normalization import batch_moments as batch_moments
from invocupy.ops.normalization import batch_norm as batch_norm
from invocupy.ops.shapes import getitem as getitem

DECLARING = attention, convolution, dropout, elementwise, loss, pooling, reductions, shapes
globals().update(OPS)
if TYPE_CHECKING:

    def __getattr__(name: str) -> Callable[..., Result]: ...
