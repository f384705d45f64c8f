"""Batch normalisation of NumPy arrays."""

from invocupy.backends.batch_norm.reference import forward as forward
from invocupy.backends.batch_norm.reference import grad_sums as grad_sums
from invocupy.backends.batch_norm.reference import grad_x as grad_x
from invocupy.backends.batch_norm.reference import moments as moments
