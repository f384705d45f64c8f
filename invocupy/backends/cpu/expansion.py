"""The reference: the CPU trains a convolution and its norm one after the other."""

from invocupy.backends.reference.expansion import backward, forward  # noqa: F401
