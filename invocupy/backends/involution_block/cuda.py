"""The block on CuPy arrays: array code; blocks on a GPU run layer by layer."""

from invocupy.backends.involution_block.reference import forward as forward
