"""Every differentiable operator as a pure function of arrays.

``op(*arrays, **options) -> (value, partials)``

``partials`` has one function for each array argument; ``partial(grad)`` is the gradient of that
argument, with its shape and dtype, given the gradient of the value. A partial is called only if
that gradient is wanted. What backward needs is a closure variable: no context object, no Tensor
in sight, so adapters for other frameworks and tests use an op without the tape. Partials that
have work in common do it once within :func:`invocupy.ops.memo.sharing`, where the tape calls them.

Rules. Inputs and gradients are never written to. A partial returns a new array, ``grad`` itself or
a view of it, never an array that it keeps. Arguments that may be ``None`` or a Python number get a
partial too; it is not called.

Adding an operator: write it here, add its function to :mod:`invocupy.functional`, and its row to
``tests/op_table.py``.
"""

from invocupy.ops.attention import local_self_attention as local_self_attention
from invocupy.ops.attention import self_attention as self_attention
from invocupy.ops.basic import absolute as absolute
from invocupy.ops.basic import add as add
from invocupy.ops.basic import concatenate as concatenate
from invocupy.ops.basic import divide as divide
from invocupy.ops.basic import exp as exp
from invocupy.ops.basic import getitem as getitem
from invocupy.ops.basic import log as log
from invocupy.ops.basic import matmul as matmul
from invocupy.ops.basic import max as max  # noqa: A004
from invocupy.ops.basic import maximum as maximum
from invocupy.ops.basic import mean as mean
from invocupy.ops.basic import multiply as multiply
from invocupy.ops.basic import negative as negative
from invocupy.ops.basic import power as power
from invocupy.ops.basic import relu as relu
from invocupy.ops.basic import reshape as reshape
from invocupy.ops.basic import sqrt as sqrt
from invocupy.ops.basic import subtract as subtract
from invocupy.ops.basic import sum as sum  # noqa: A004
from invocupy.ops.basic import tanh as tanh
from invocupy.ops.basic import transpose as transpose
from invocupy.ops.convolution import conv2d as conv2d
from invocupy.ops.convolution import linear as linear
from invocupy.ops.involution import fused_involution as fused_involution
from invocupy.ops.involution import fused_involution_backward as fused_involution_backward
from invocupy.ops.involution import involution as involution
from invocupy.ops.involution import involution_backward as involution_backward
from invocupy.ops.loss import cross_entropy as cross_entropy
from invocupy.ops.loss import log_softmax as log_softmax
from invocupy.ops.loss import softmax as softmax
from invocupy.ops.normalization import batch_moments as batch_moments
from invocupy.ops.normalization import batch_norm as batch_norm
from invocupy.ops.pooling import avg_pool2d as avg_pool2d
from invocupy.ops.pooling import max_pool2d as max_pool2d
