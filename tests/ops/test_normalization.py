"""Batch norm: its formula, and what it refuses."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from bounds import SEEDS, assert_close, host
from hypothesis import given
from hypothesis import strategies as st

from invocupy import Tensor
from invocupy import functional as F  # noqa: N812
from invocupy.ops.normalization import running_moments


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
@given(seed=SEEDS)
def test_batch_norm_is_its_formula(
    xp: ModuleType, with_residual: bool, relu: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    shapes = [(3, 2, 3, 4), (2,), (2,), (3, 2, 3, 4)]
    arrays = [xp.asarray(rng.standard_normal(shape)) for shape in shapes]
    cotangent = xp.asarray(rng.standard_normal(shapes[0]))

    def fused(x: Any, weight: Any, bias: Any, residual: Any) -> Any:
        residual = residual if with_residual else None
        return F.batch_norm(
            x, weight=weight, bias=bias, training=True, eps=1e-3, residual=residual, relu=relu
        )

    def composed(x: Any, weight: Any, bias: Any, residual: Any) -> Any:
        weight, bias = weight.reshape(2, 1, 1), bias.reshape(2, 1, 1)
        centred = x - x.mean(axis=(0, 2, 3), keepdims=True)
        var = (centred * centred).mean(axis=(0, 2, 3), keepdims=True)
        y = weight * centred / (var + 1e-3).sqrt() + bias
        y = y + residual if with_residual else y
        return y.relu() if relu else y

    results = []
    for function in (fused, composed):
        tensors = [Tensor(array, requires_grad=True) for array in arrays]
        value = function(*tensors)
        value.backward(cotangent)
        results.append([value, *(t.grad for t in tensors if t.grad is not None)])
    # A chain of two sums over 36 values, and some dozens of operations around them. The sums may
    # cancel: what is rounded is as large as a value of the cotangent.
    summand = float(np.abs(host(cotangent)).max())
    for one, other in zip(*results, strict=True):
        assert_close(one, other, terms=200, summand=summand)


def test_batch_norm_without_weight_and_bias_and_given_moments() -> None:
    x = np.random.default_rng(0).standard_normal((4, 3, 2, 2))
    plain = F.batch_norm(x, training=True)
    assert (plain == F.batch_norm(x, weight=np.ones(3), bias=np.zeros(3), training=True)).all()
    assert (plain == F.batch_norm(x, training=True, moments=F.batch_moments(x))).all()
    assert (plain == F.batch_norm(x, *F.batch_moments(x))).all()


@given(seed=SEEDS, level=st.sampled_from([0.0, 1e3, 1e6]))
def test_batch_moments_do_not_cancel(seed: int, level: float, xp: ModuleType) -> None:
    x = (np.random.default_rng(seed).standard_normal((2, 3, 4, 5)) + level).astype("float32")
    mean, var = map(host, F.batch_moments(xp.asarray(x)))
    wide = x.astype("float64")
    n, unit = 40, 2.0**-24
    off = (n + 1) * unit * np.abs(wide).mean(axis=(0, 2, 3))
    assert (abs(mean - wide.mean(axis=(0, 2, 3))) <= off).all()
    # mean (x - m - off)^2 = var + off^2, whatever the level; and n + 3 roundings of the terms
    exact = wide.var(axis=(0, 2, 3))
    assert (abs(var - exact) <= off**2 + (n + 4) * unit * (exact + off**2)).all()


def test_batch_norm_refuses_missing_statistics() -> None:
    with pytest.raises(ValueError, match="running_mean and running_var are needed"):
        F.batch_norm(np.ones((1, 1, 2, 2)))
    with pytest.raises(ValueError, match=r"x must be \(N, C, \*S\) with at least one value"):
        F.batch_norm(np.ones(2), training=True)
    with pytest.raises(ValueError, match="at least one value per channel"):
        F.batch_norm(np.ones((0, 2, 2, 2)), training=True)


@pytest.mark.parametrize("name", ["running_mean", "running_var", "weight", "bias", "residual"])
def test_batch_norm_refuses_arrays_that_would_be_read_past_their_end(name: str) -> None:
    x = np.ones((2, 3, 4, 4))
    given: dict[str, Any] = dict.fromkeys(
        ("running_mean", "running_var", "weight", "bias"), np.ones(3)
    )
    assert F.batch_norm(x, **given, residual=x).shape == x.shape
    for wrong in (np.ones(1), np.ones((1, 1, 1, 1)), np.ones((2, 3, 1, 1))):
        with pytest.raises(ValueError, match=name.removeprefix("running_") + " must have .*shape"):
            F.batch_norm(x, **{**given, name: wrong})
    with pytest.raises(ValueError, match=r"x must have 2 or more dimensions .*\(4,\)"):
        F.batch_norm(x[0, 0, 0], **given)


@pytest.mark.parametrize("shape", [(30, 2), (6, 2, 5), (2, 2, 5, 3), (2, 2, 3, 1, 5)])
@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_over_any_number_of_axes(
    shape: tuple[int, ...], training: bool, xp: ModuleType
) -> None:
    """As over the same values in one row."""
    rng = np.random.default_rng(0)
    draw = [xp.asarray(rng.standard_normal(shape)) for _ in range(3)]
    rows = [np.moveaxis(host(a), 1, 0).reshape(2, -1).T[..., None, None] for a in draw]
    moments = xp.asarray(rng.uniform(1, 2, (4, 2)))
    results = []
    for x, residual, grad in (draw, [xp.asarray(a) for a in rows]):
        tensors = [Tensor(a, requires_grad=True) for a in (x, residual, *moments[:2])]
        value = F.batch_norm(
            tensors[0], *moments[2:], *tensors[2:], training, residual=tensors[1], relu=True
        )
        value.backward(grad)
        made = [host(a) for a in (value, tensors[0].grad, tensors[1].grad)]
        made = [np.moveaxis(a, 1, 0).reshape(2, -1) for a in made]
        results.append([*made, host(tensors[2].grad), host(tensors[3].grad)])
    for one, other in zip(*results, strict=True):
        assert_close(one, other, terms=200)


# ---------------------------------------------------------------------------- options


def test_one_value_has_no_variance() -> None:
    ones = np.ones(3)
    for count in (0, 1):
        with pytest.raises(ValueError, match=rf"variance of {count} value.*call eval\(\)"):
            running_moments(ones, ones, ones, ones, 0.1, count)
