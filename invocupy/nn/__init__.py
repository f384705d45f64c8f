"""Layers. Meanings, defaults, initial distributions and running statistics are PyTorch's."""

from __future__ import annotations

from invocupy.nn.containers import ModuleList, Sequential
from invocupy.nn.dropout import Dropout
from invocupy.nn.involution import (
    FusedOption,
    Involution,
    Involution1d,
    Involution2d,
    Involution3d,
)
from invocupy.nn.layers import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    Conv1d,
    Conv2d,
    Conv3d,
    CrossEntropyLoss,
    Flatten,
    Identity,
    Linear,
    ReLU,
    Softmax,
)
from invocupy.nn.module import Input, Module, keep_modes
from invocupy.nn.parameter import Buffer, Parameter
from invocupy.nn.pooling import (
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    GlobalAvgPool2d,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
)

__all__ = [
    "AvgPool1d", "AvgPool2d", "AvgPool3d", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "Buffer",
    "Conv1d", "Conv2d", "Conv3d", "CrossEntropyLoss", "Dropout", "Flatten", "FusedOption",
    "GlobalAvgPool2d", "Identity", "Input", "Involution", "Involution1d", "Involution2d",
    "Involution3d", "Linear", "MaxPool1d", "MaxPool2d", "MaxPool3d", "Module", "ModuleList",
    "Parameter", "ReLU", "Sequential", "Softmax", "keep_modes",
]  # fmt: skip
