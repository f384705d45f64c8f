"""Convolution on CuPy arrays: array code around cuBLAS."""

from invocupy.backends.convolution.reference import forward as forward
from invocupy.backends.convolution.reference import grad_weight as grad_weight
from invocupy.backends.convolution.reference import grad_x as grad_x
