"""Involution without a deep learning framework.

Array operator for NumPy and CuPy, small tape autograd, layers and trainer. Involution is
described in Li et al., CVPR 2021, arXiv 2103.06255.
"""

import importlib
from typing import TYPE_CHECKING, Any

from invocupy import functional, reference
from invocupy._version import __version__
from invocupy.arrays import to_device
from invocupy.autograd import Tensor, detect_in_place, no_grad
from invocupy.backends.memory import release_memory
from invocupy.functional import fused_involution, involution
from invocupy.geometry import Geometry
from invocupy.messages import did_you_mean
from invocupy.ops.involution import fused_involution_backward, involution_backward

__all__ = [
    "Geometry", "Tensor", "__version__", "detect_in_place", "functional", "fused_involution",
    "fused_involution_backward", "involution", "involution_backward", "no_grad", "reference",
    "release_memory", "to_device",
]  # fmt: skip
_SUBMODULES = (
    "checkpoint", "data", "models", "nn", "optim", "report", "summary", "testing", "train",
    "weights",
)  # fmt: skip


if TYPE_CHECKING:
    from invocupy import checkpoint as checkpoint
    from invocupy import data as data
    from invocupy import models as models
    from invocupy import nn as nn
    from invocupy import optim as optim
    from invocupy import report as report
    from invocupy import summary as summary
    from invocupy import testing as testing
    from invocupy import train as train
    from invocupy import weights as weights
else:

    def __getattr__(name: str) -> Any:
        """Import submodules on first use, so that ``import invocupy`` stays fast."""
        if name in _SUBMODULES:
            return importlib.import_module(f"invocupy.{name}")
        near = did_you_mean(name, [*__all__, *_SUBMODULES])
        raise AttributeError(f"module 'invocupy' has no attribute {name!r}{near}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBMODULES])
