"""Tools for tests: generated sizes and arrays, gradient checks, error bounds.

The only module that needs Hypothesis (``pip install 'invocupy[testing]'``).

:func:`geometries` draws sizes and options, :func:`arrays` draws arrays in every memory layout;
:func:`gradcheck` checks a gradient of the tape, :func:`check_partials` an operator of
:mod:`invocupy.ops`; :func:`tolerance` bounds the rounding error of a result.
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
