"""A norm takes the bias of the convolution before it off again: on a GPU it is never added."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from invocupy import Tensor, nn, no_grad, to_device
from invocupy.arrays import require_cupy


def layers(xp: Any) -> tuple[nn.Conv2d, nn.BatchNorm2d, Tensor]:
    rng = np.random.default_rng(0)
    conv, norm = nn.Conv2d(5, 3, 1, rng=rng), nn.BatchNorm2d(3)
    norm.running_mean.data += rng.standard_normal(3).astype(np.float32)
    model = nn.Sequential(conv, norm).to("cpu" if xp is np else "cuda")
    for parameter in model.parameters():
        parameter.data = parameter.data.astype(np.float64)
    for buffer in (norm.running_mean, norm.running_var):
        buffer.data = buffer.data.astype(np.float64)
    return conv, norm, Tensor(xp.asarray(rng.standard_normal((2, 5, 4, 6))), requires_grad=True)


def results(xp: Any, training: bool, recording: bool, whole: bool) -> list[Any]:
    """Value, gradients and running statistics: of :meth:`of`, or of one layer after the other."""
    conv, norm, x = layers(xp)
    norm.train(training)
    found = []
    if recording:
        y = norm.of(conv, x, relu=True) if whole else norm(conv(x), relu=True)
        (y * y).sum().backward()
        found = [p.grad for p in (x, conv.weight, conv.bias, norm.weight, norm.bias)]
    else:
        with no_grad():
            y = norm.of(conv, x, relu=True) if whole else norm(conv(x), relu=True)
    found += [y.data, norm.running_mean.data, norm.running_var.data]
    return [to_device(array, "cpu") for array in found]


@pytest.mark.parametrize("recording", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_the_norm_of_a_convolution(training: bool, recording: bool, xp: Any) -> None:
    pairs = zip(*(results(xp, training, recording, whole) for whole in (True, False)), strict=True)
    for got, wanted in pairs:
        np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.gpu
def test_no_pass_for_the_bias() -> None:
    """Neither forward nor back: the gradient of the bias is zeros."""
    cp = require_cupy()
    if not hasattr(cp.cuda, "recording"):
        pytest.skip("only the stand-in records what devices are asked for")
    conv, norm, x = layers(cp)
    with cp.cuda.recording(idle=True) as operations:
        norm.of(conv, x).sum().backward()
    names = [operation.name for operation in operations]
    assert "cupy.zeros_like" in names
    assert not {"cupy.add", "pointwise/sum_planes"} & {
        o.name for o in operations if o.bytes > 2 * norm.weight.data.nbytes * 4
    }
