"""Involution without a deep learning framework.

Array operator for NumPy and CuPy, small tape autograd, layers and trainer. Involution is
described in Li et al., CVPR 2021, arXiv 2103.06255.
"""

import importlib
from typing import Any

from invocupy import functional as functional
from invocupy import reference as reference
from invocupy._version import __version__ as __version__
from invocupy.arrays import to_device as to_device
from invocupy.autograd import Tensor as Tensor
from invocupy.autograd import no_grad as no_grad
from invocupy.functional import fused_involution as fused_involution
from invocupy.functional import involution as involution
from invocupy.geometry import Geometry as Geometry
from invocupy.ops import fused_involution_backward as fused_involution_backward
from invocupy.ops import involution_backward as involution_backward

_SUBMODULES = (
    "checkpoint", "data", "models", "nn", "optim", "report", "summary", "testing", "train",
    "weights",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    """Submodules load when first named, so that ``import invocupy`` stays light."""
    if name in _SUBMODULES:
        return importlib.import_module(f"invocupy.{name}")
    raise AttributeError(f"module 'invocupy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBMODULES})
