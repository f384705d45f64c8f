"""Convolution on CuPy arrays: array code around cuBLAS."""

from invocupy.backends.reference.convolution import forward as forward
from invocupy.backends.reference.convolution import grad_weight as grad_weight
from invocupy.backends.reference.convolution import grad_x as grad_x
