"""The block on CuPy arrays: array code; blocks on a GPU run layer by layer."""

from invocupy.backends.reference.involution_block import forward as forward
