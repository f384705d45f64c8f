"""The perceptron on CuPy arrays: array code and cuBLAS products."""

from invocupy.backends.reference.perceptron import backward as backward
from invocupy.backends.reference.perceptron import covariance as covariance
from invocupy.backends.reference.perceptron import forward as forward
