"""Every operator on Tensors and on plain arrays: :mod:`invocupy.ops` lifted to the tape.

With a :class:`~invocupy.Tensor` among its array arguments a function returns a Tensor, through
which gradients flow; with NumPy or CuPy arrays it returns an array and records nothing. Their types
are in ``__init__.pyi``, which ``python .ci/stubs.py`` writes from the declarations.
"""

from invocupy.autograd.lift import FUNCTIONS
from invocupy.functional.normalization import batch_moments as batch_moments
from invocupy.functional.normalization import batch_norm as batch_norm

globals().update(FUNCTIONS)
__all__ = sorted([*FUNCTIONS, "batch_moments", "batch_norm"])
