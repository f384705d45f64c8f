"""What invocupy is compared with: involution as it is written in PyTorch.

Needs PyTorch, which is no dependency of the package: see ``benchmarks/cpu.py --make-env``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


def unfold_form(x: Tensor, kernel: Tensor, padding: int) -> Tensor:
    """The usual form: write K*K shifted copies of the image, multiply, sum."""
    n, c, h, w = x.shape
    _, g, kh, kw, _, _ = kernel.shape
    patches = F.unfold(x, (kh, kw), padding=padding).view(n, g, c // g, kh * kw, h, w)
    return (kernel.view(n, g, 1, kh * kw, h, w) * patches).sum(dim=3).view(n, c, h, w)


def shift_form(x: Tensor, kernel: Tensor, padding: int) -> Tensor:
    """What a careful user writes: one multiply-add for each tap of the padded image."""
    n, c, h, w = x.shape
    _, g, kh, kw, _, _ = kernel.shape
    padded = F.pad(x, (padding,) * 4).view(n, g, c // g, h + 2 * padding, w + 2 * padding)
    out = torch.zeros(n, g, c // g, h, w, dtype=x.dtype, device=x.device)
    for u in range(kh):
        for v in range(kw):
            out = out + kernel[:, :, None, u, v] * padded[..., u : u + h, v : v + w]
    return out.view(n, c, h, w)


class Involution(nn.Module):
    """The article's layer: the generator registered twice, unfold form, stride 1."""

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        reduction_ratio: int = 4,
        channels_per_group: int = 16,
    ) -> None:
        super().__init__()
        self.kernel_size, self.groups = kernel_size, channels // channels_per_group
        width = channels // reduction_ratio
        self.weights0 = nn.Conv2d(channels, width, 1)
        self.BN = nn.BatchNorm2d(width)
        self.weights1 = nn.Conv2d(width, kernel_size**2 * self.groups, 1)
        self.kernel_generator = nn.Sequential(self.weights0, self.BN, nn.ReLU(), self.weights1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        n, _, h, w = x.shape
        size = (n, self.groups, self.kernel_size, self.kernel_size, h, w)
        return unfold_form(x, self.kernel_generator(x).view(size), self.kernel_size // 2)


class SimpleModel(nn.Module):
    """The article's network up to the logits, with the residual added out of place."""

    def __init__(self, num_layers: int = 50) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(3, 64, 1),
                nn.BatchNorm2d(64),
                nn.ReLU(),
                Involution(64),
                nn.Conv2d(64, 3, 1),
                nn.BatchNorm2d(3),
                nn.ReLU(),
            )
            for _ in range(num_layers)
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(3072, 500), nn.Linear(500, 100), nn.Linear(100, 10)
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
