"""Pooling on CuPy arrays: array code."""

from invocupy.backends.reference.pooling import avg_pool as avg_pool
from invocupy.backends.reference.pooling import avg_pool_grad as avg_pool_grad
from invocupy.backends.reference.pooling import max_pool as max_pool
from invocupy.backends.reference.pooling import max_pool_grad as max_pool_grad
