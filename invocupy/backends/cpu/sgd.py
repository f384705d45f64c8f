"""SGD and moving averages on NumPy arrays: the reference is as fast as it gets."""

from invocupy.backends.reference.sgd import average as average
from invocupy.backends.reference.sgd import update as update
