"""PyTorch layers, with the names and weights of other programs."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from invocupy import nn as own_nn
from invocupy import weights

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
interop = pytest.importorskip("invocupy.interop.torch")
Tensor = Any
PLAIN = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}


def draw(*shape: int, seed: int = 0, dtype: Any = torch.float64, grad: bool = True) -> Tensor:
    numbers = np.random.default_rng(seed + sum(shape)).standard_normal(shape)
    return torch.tensor(numbers, dtype=dtype, requires_grad=grad)


def fused(x: Tensor, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return interop.fused_involution(x, features, weight, bias, kernel_size=3, **PLAIN)


# ---------------------------------------------------------------------------- layers


class Article(torch.nn.Module):
    """The article's layer in PyTorch's own operators, with its names."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.kernel_size, self.groups = kernel_size, channels // 16
        self.weights0 = torch.nn.Conv2d(channels, channels // 4, 1)
        self.BN = torch.nn.BatchNorm2d(channels // 4)
        self.relu = torch.nn.ReLU()
        self.weights1 = torch.nn.Conv2d(channels // 4, kernel_size**2 * self.groups, 1)
        self.kernel_generator = torch.nn.Sequential(
            self.weights0, self.BN, self.relu, self.weights1
        )
        self.unfold = torch.nn.Unfold(kernel_size, 1, (kernel_size - 1) // 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        kernel = self.kernel_generator(x).view(n, self.groups, 1, self.kernel_size**2, h, w)
        patches = self.unfold(x).view(n, self.groups, 16, self.kernel_size**2, h, w)
        return (kernel * patches).sum(3).view(n, c, h, w)


@pytest.mark.parametrize("fused", [False, True])
def test_the_articles_class_can_be_replaced(fused: bool) -> None:
    torch.manual_seed(0)
    theirs = Article(32, 3).double()
    ours = interop.Involution(32, 3, fused=fused).double()
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = draw(3, 32, 6, 5)
    grad = draw(3, 32, 6, 5, seed=1, grad=False)
    results = []
    for layer in (ours, theirs):
        out = layer(x)
        results.append((out, *torch.autograd.grad(out, [x, *layer.parameters()], grad)))
    torch.testing.assert_close(*results)
    torch.testing.assert_close(ours.BN.running_var, theirs.BN.running_var)


def test_the_same_weights_give_the_same_in_our_own_layer() -> None:
    torch.manual_seed(0)
    layer = interop.Involution(32, 5, stride=2, dilation=2).double().eval()
    own = own_nn.Involution(32, 5, stride=2, dilation=2)
    weights.import_state(own, {k: v.numpy() for k, v in layer.state_dict().items()})
    own.eval()
    x = draw(2, 32, 9, 7, grad=False)
    with torch.no_grad():
        torch.testing.assert_close(
            layer(x), torch.from_numpy(own(x.numpy()).data), rtol=1e-5, atol=1e-5
        )


def test_rednet_names() -> None:
    names = set(interop.RedNetInvolution(64, 7, 2, fused=True).state_dict())
    norm = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    assert names == {
        "conv1.conv.weight",
        "conv2.conv.weight",
        "conv2.conv.bias",
        *(f"conv1.bn.{n}" for n in norm),
    }


def test_rednet_layer_is_the_articles_without_a_bias() -> None:
    torch.manual_seed(0)
    rednet, article = interop.RedNetInvolution(32, 3).double(), interop.Involution(32, 3).double()
    with torch.no_grad():
        article.weights0.weight.copy_(rednet.conv1.conv.weight)
        article.weights0.bias.zero_()
        article.weights1.load_state_dict(rednet.conv2.conv.state_dict())
    x = draw(2, 32, 5, 5)
    torch.testing.assert_close(rednet(x), article(x))


def test_nothing_else_imports_torch() -> None:
    script = "import sys, invocupy, invocupy.interop, invocupy.nn; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout.strip() == b"False"
