"""The perceptron on CuPy arrays: array code and cuBLAS products."""

from invocupy.backends.perceptron.reference import backward as backward
from invocupy.backends.perceptron.reference import covariance as covariance
from invocupy.backends.perceptron.reference import forward as forward
