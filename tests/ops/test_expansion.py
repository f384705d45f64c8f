"""A widening convolution, its norm and a ReLU as one operator, against the layers one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bounds import draw

from invocupy import Tensor, distributed, nn, to_device
from invocupy.arrays import require_cupy
from invocupy.autograd import apply
from invocupy.backends.cuda import graph
from invocupy.ops.expansion import expansion

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
CASES = {
    "image": ((3, 3, 6, 7), 18, True, True),
    "signal, no ReLU, no bias": ((2, 1, 9), 5, False, False),
    "volume": ((2, 6, 2, 4, 5), 7, True, True),
}


def layers(xp: Any, shape: Any, wide: int, bias: bool = True) -> tuple[Any, Any, Tensor]:
    """Convolution, norm and x, all float64, with a mean."""
    rng, dims = np.random.default_rng(0), len(shape) - 2
    model = nn.Sequential(
        CONVOLUTIONS[dims](shape[1], wide, 1, bias=bias, rng=rng), NORMS[dims](wide, eps=1e-3)
    ).to("cpu" if xp is np else "cuda")
    for name, value in model.named_state():
        if "num_batches" not in name:
            value.data = value.data.astype(np.float64)
    norm = model[1]
    for parameter in (norm.weight, norm.bias):
        parameter.data += xp.asarray(0.3 * rng.standard_normal(wide))
    return model[0], norm, Tensor(xp.asarray(rng.standard_normal(shape) + 2), requires_grad=True)


@pytest.mark.parametrize("way", ["operator", "of"])
@pytest.mark.parametrize("name", CASES)
def test_it_is_the_composition_of_its_layers(name: str, way: str, xp: Any) -> None:
    shape, wide, relu, bias = CASES[name]
    found = []
    for whole in (False, True):
        conv, norm, x = layers(xp, shape, wide, bias)
        if not whole:
            y = norm(conv(x), relu=relu)
        elif way == "of":
            y = norm.of(conv, x, relu=relu)
        else:
            options = {"eps": norm.eps, "relu": relu, "observe": norm.observe}
            y = apply(expansion, x, conv.weight, conv.bias, norm.weight, norm.bias, **options)
        y.backward(xp.asarray(draw(1, "float64", y.shape)[0]))
        leaves = [x, conv.weight, *([conv.bias] if bias else []), norm.weight, norm.bias]
        arrays = [y.data, norm.running_mean.data, norm.running_var.data, *(p.grad for p in leaves)]
        assert all(p.grad.flags.owndata for p in leaves)
        found.append([to_device(array, "cpu") for array in arrays])
        assert norm.num_batches_tracked.data.item() == 1
    for got, wanted in zip(*found, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-10)


def names_of(work: Any) -> list[str]:
    cp = require_cupy()
    if not hasattr(cp.cuda, "recording"):
        pytest.skip("only the stand-in records what devices are asked for")
    with cp.cuda.recording(idle=True) as operations:
        work()
    return [o.name for o in operations]


@pytest.mark.gpu
def test_what_a_device_is_asked_for() -> None:
    conv, norm, x = layers(require_cupy(), (2, 3, 4, 6), 5)
    y: list[Any] = []
    assert names_of(lambda: y.append(norm.of(conv, x, relu=True))) == [
        "spread/spread", "expansion/expand", "cupy.add", "batch_norm/channels",
    ]  # fmt: skip
    assert names_of(lambda: y[0].backward(y[0].data)) == [
        "expansion/grad_expand", "expansion/merge_expand", "spread/grad_x",
    ]  # fmt: skip


class Doubled(nn.Conv2d):
    def forward(self, x: nn.Input, biased: bool = True) -> Tensor:
        return super().forward(x, biased) * 2


@pytest.mark.gpu
@pytest.mark.parametrize("why", [
    "", "9 channels", "narrower", "too many", "float64", "3x3", "stride", "padding", "groups",
    "a forward of its own", "two dtypes", "evaluation", "ranks", "not affine",
])  # fmt: skip
def test_where_the_layers_run_one_by_one(why: str) -> None:
    cp, rng = require_cupy(), np.random.default_rng(0)
    inside = {"9 channels": 9, "narrower": 6, "float64": 7}.get(why, 4)
    wide = {"narrower": 6, "too many": 440}.get(why, 12)
    options: Any = {
        "stride": {"stride": (1, 2)}, "padding": {"padding": (0, 1)}, "groups": {"groups": 2},
    }.get(why, {})  # fmt: skip
    make = Doubled if why == "a forward of its own" else nn.Conv2d
    conv = make(inside, wide, 3 if why == "3x3" else 1, **options, rng=rng).to("cuda")
    norm = nn.BatchNorm2d(wide, affine=why != "not affine").to("cuda").train(why != "evaluation")
    if why == "ranks":
        distributed.synchronise(norm, distributed.Single())
    if why in ("float64", "two dtypes"):
        for p in (conv.weight, conv.bias, norm.weight, norm.bias)[: None if inside == 7 else 1]:
            p.data = p.data.astype(np.float64)
    x = cp.zeros((2, inside, 5, 4), conv.weight.data.dtype)
    assert ("expansion/expand" in names_of(lambda: norm.of(conv, x))) == (not why)


@pytest.mark.gpu
def test_a_graph_holds_it() -> None:
    """A launch computes what a call does, and reads x anew."""
    cp = require_cupy()
    conv, norm, x = layers(cp, (2, 3, 4, 6), 5)
    given = [p.data for p in (x, conv.weight, conv.bias, norm.weight, norm.bias)]
    grad = cp.asarray(draw(2, "float64", (2, 5, 4, 6))[0])

    def run() -> list[Any]:
        y, vjps = expansion(*given, eps=1e-3, relu=True, observe=lambda *moments: None)
        return [y, *(vjp(grad) for vjp in vjps)]

    recorder = graph.Recorder()
    with recorder.current():
        run()
        launch, results = recorder.record(run)
        given[0] *= 3
        launch()
        for got, wanted in zip(results, run(), strict=True):
            assert (got == wanted).all()


def test_one_value_per_channel_is_refused(xp: Any) -> None:
    conv, norm, _ = layers(xp, (1, 3, 1, 1), 5)
    with pytest.raises(ValueError, match="more than one value per channel"):
        norm.of(conv, xp.zeros((1, 3, 1, 1)))


@pytest.mark.parametrize("name", ["bias", "norm_weight", "norm_bias"])
def test_parameters_of_another_length_are_refused(name: str) -> None:
    wide = {"bias": 5, "norm_weight": 5, "norm_bias": 5} | {name: 4}
    bias, *norm = (np.ones(size) for size in wide.values())
    options: Any = {"eps": 0.0, "relu": True, "observe": print}
    with pytest.raises(ValueError, match=rf"^{name} must have shape \(5,\), got \(4,\)$"):
        expansion(np.ones((2, 3, 4)), np.ones((5, 3, 1)), bias, *norm, **options)
