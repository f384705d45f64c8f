"""Convolution on CuPy arrays: array code around cuBLAS."""

from invocupy.backends.convolution import reference
from invocupy.backends.far import bounded_windows

forward = bounded_windows("xkb", "o")(reference.forward)
grad_x = bounded_windows("ok", "x")(reference.grad_x)
grad_weight = bounded_windows("ox", "kb")(reference.grad_weight)
