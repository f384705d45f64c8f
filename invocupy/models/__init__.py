"""Networks of the article and of the paper, ResNets, and a small network for comparisons.

"The article" is P. Kandru, "Invert the characteristics of convolution with involution" (2021); the
page "The article's model" in the documentation lists the corrections to its network. "The paper" is
Li et al., CVPR 2021, arXiv 2103.06255.
"""

from __future__ import annotations

from collections.abc import Callable

from invocupy.models.rednet import RedNet, rednet26, rednet38, rednet50, rednet101, rednet152
from invocupy.models.resnet import ResNet, resnet18, resnet50
from invocupy.models.simple import SimpleBlock, SimpleModel
from invocupy.models.small import SPATIAL, SmallNet

__all__ = [
    "NETWORKS", "SPATIAL", "RedNet", "ResNet", "SimpleBlock", "SimpleModel", "SmallNet",
    "rednet26", "rednet38", "rednet50", "rednet101", "rednet152", "resnet18", "resnet50",
]  # fmt: skip

_NETWORKS = rednet26, rednet38, rednet50, rednet101, rednet152, resnet18, resnet50
NETWORKS: dict[str, Callable[..., RedNet | ResNet]] = {make.__name__: make for make in _NETWORKS}
"""The networks that take ``(num_classes, in_channels, stem)``, by name."""
