"""Involution without a deep learning framework.

Array operator for NumPy and CuPy, small tape autograd, layers and trainer. Involution is
described in Li et al., CVPR 2021, arXiv 2103.06255.
"""

from invocupy._version import __version__ as __version__
