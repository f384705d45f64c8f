"""Layers. Meanings, defaults, initial distributions and running statistics are PyTorch's."""

from __future__ import annotations

from invocupy.nn.containers import ModuleList, Sequential
from invocupy.nn.involution import FusedOption, Involution
from invocupy.nn.layers import (
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    CrossEntropyLoss,
    Flatten,
    GlobalAvgPool2d,
    Identity,
    Linear,
    MaxPool2d,
    ReLU,
    Softmax,
)
from invocupy.nn.module import Input, Module, keep_modes
from invocupy.nn.parameter import Buffer, Parameter

__all__ = [
    "AvgPool2d", "BatchNorm2d", "Buffer", "Conv2d", "CrossEntropyLoss", "Flatten", "FusedOption",
    "GlobalAvgPool2d", "Identity", "Input", "Involution", "Linear", "MaxPool2d", "Module",
    "ModuleList", "Parameter", "ReLU", "Sequential", "Softmax", "keep_modes",
]  # fmt: skip
