"""What our own tests are made of, for yours: drawn sizes and arrays, gradient checks, error bounds.

The only module that needs Hypothesis (``pip install 'invocupy[testing]'``).

Draw sizes and options with :func:`geometries`, arrays in every memory layout with :func:`arrays`;
check a gradient that went through the tape with :func:`gradcheck`, an operator of
:mod:`invocupy.ops` with :func:`check_partials`; ask :func:`tolerance` how far a result may be off.
"""

from __future__ import annotations

from invocupy.testing.drawing import arrays, geometries, options
from invocupy.testing.gradients import check_partials, gradcheck
from invocupy.testing.layouts import LAYOUTS, NUMPY_LAYOUTS, lay_out
from invocupy.testing.rounding import tolerance

__all__ = [
    "LAYOUTS",
    "NUMPY_LAYOUTS",
    "arrays",
    "check_partials",
    "geometries",
    "gradcheck",
    "lay_out",
    "options",
    "tolerance",
]
