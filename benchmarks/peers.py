"""Implementations of involution in PyTorch, with which invocupy is compared.

Needs PyTorch, on which the package does not depend: see ``benchmarks/cpu.py --make-env``.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import prod
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

Form = Callable[..., Tensor]


def unfold_form(x: Tensor, kernel: Tensor, padding: int, stride: int = 1) -> Tensor:
    """The usual form: write a shifted copy of the image for each tap, multiply, sum."""
    n, c = x.shape[:2]
    dims, g = x.ndim - 2, kernel.shape[1]
    size, out = kernel.shape[2 : 2 + dims], kernel.shape[2 + dims :]
    if dims == 2:
        patches = F.unfold(x, size, padding=padding, stride=stride)
    else:  # what F.unfold does, but not only for images
        patches = F.pad(x, (padding,) * 2 * dims)
        for axis, k in enumerate(size, 2):
            patches = patches.unfold(axis, k, stride)
        patches = patches.permute(0, 1, *range(2 + dims, 2 + 2 * dims), *range(2, 2 + dims))
    patches = patches.reshape(n, g, c // g, prod(size), *out)
    return (kernel.view(n, g, 1, prod(size), *out) * patches).sum(dim=3).view(n, c, *out)


def shift_form(x: Tensor, kernel: Tensor, padding: int, stride: int = 1) -> Tensor:
    """A form with less memory: one multiply-add for each tap of the padded image."""
    n, c, *image = x.shape
    dims, g = len(image), kernel.shape[1]
    size, positions = kernel.shape[2 : 2 + dims], kernel.shape[2 + dims :]
    padded = F.pad(x, (padding,) * 2 * dims).view(n, g, c // g, *(s + 2 * padding for s in image))
    out = torch.zeros(n, g, c // g, *positions, dtype=x.dtype, device=x.device)
    for tap in product(*map(range, size)):
        seen = (
            slice(first, first + (number - 1) * stride + 1, stride)
            for first, number in zip(tap, positions, strict=True)
        )
        out = out + kernel[(slice(None), slice(None), None, *tap)] * padded[(..., *seen)]
    return out.view(n, c, *positions)


class Involution(nn.Module):
    """The article's layer: the generator registered twice, unfold form, stride 1."""

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        reduction_ratio: int = 4,
        channels_per_group: int = 16,
        form: Form = unfold_form,
    ) -> None:
        super().__init__()
        self.kernel_size, self.groups = kernel_size, channels // channels_per_group
        self.form = form
        width = channels // reduction_ratio
        self.weights0 = nn.Conv2d(channels, width, 1)
        self.BN = nn.BatchNorm2d(width)
        self.weights1 = nn.Conv2d(width, kernel_size**2 * self.groups, 1)
        self.kernel_generator = nn.Sequential(self.weights0, self.BN, nn.ReLU(), self.weights1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        n, _, h, w = x.shape
        size = (n, self.groups, self.kernel_size, self.kernel_size, h, w)
        return self.form(x, self.kernel_generator(x).view(size), self.kernel_size // 2)


class SimpleModel(nn.Module):
    """The article's network up to the logits, with the residual added out of place."""

    def __init__(self, num_layers: int = 50, form: Form = unfold_form) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(3, 64, 1),
                nn.BatchNorm2d(64),
                nn.ReLU(),
                Involution(64, form=form),
                nn.Conv2d(64, 3, 1),
                nn.BatchNorm2d(3),
                nn.ReLU(),
            )
            for _ in range(num_layers)
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(3072, 500),
            nn.ReLU(),
            nn.Linear(500, 100),
            nn.ReLU(),
            nn.Linear(100, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 32, 32) to logits (N, 10)."""
        for layer in self.layers:
            x = layer(x) + x
        return self.classifier(x)


def training_step(model: nn.Module, optimizer: Any, x: Tensor, labels: Tensor) -> None:
    """Forward, backward and update."""
    optimizer.zero_grad()
    F.cross_entropy(model(x), labels).backward()
    optimizer.step()
