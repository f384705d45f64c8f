"""Softmax and cross-entropy: their formulas, and what they refuse."""

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


@given(seed=SEEDS, smoothing=st.sampled_from([0.0, 0.1, 1.0]))
def test_cross_entropy_is_its_formula(seed: int, smoothing: float, xp: ModuleType) -> None:
    rng = np.random.default_rng(seed)
    data, labels = rng.standard_normal((6, 5)) * 3, rng.integers(0, 5, 6)
    target = xp.asarray((1 - smoothing) * np.eye(5)[labels] + smoothing / 5)

    def composed(logits: Any) -> Any:
        log_p = logits - logits.exp().sum(axis=1, keepdims=True).log()
        return -(log_p * target).sum() / 6

    fused, plain = (Tensor(xp.asarray(data), requires_grad=True) for _ in range(2))
    loss = F.cross_entropy(fused, xp.asarray(labels), label_smoothing=smoothing)
    expected = composed(plain)
    loss.backward()
    expected.backward()
    assert loss.shape == ()
    assert_close(loss, expected, terms=60)
    assert_close(fused.grad, plain.grad, terms=60)


@given(seed=SEEDS)
def test_softmax_is_its_formula(seed: int, xp: ModuleType) -> None:
    x = xp.asarray(np.random.default_rng(seed).standard_normal((3, 7)))
    powers = xp.exp(x)
    expected = powers / powers.sum(axis=1, keepdims=True)
    assert_close(F.softmax(x), expected, terms=30)
    assert_close(F.log_softmax(x), xp.log(expected), terms=60)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_softmax_neither_overflows_nor_underflows(dtype: str, xp: ModuleType) -> None:
    x = xp.asarray([[1e4, 1e4, -1e4], [-1e4, -1e4, -1e4]], dtype)
    assert host(F.softmax(x)).tolist() == [[0.5, 0.5, 0.0], [1 / np.array(3, dtype)] * 3]
    assert_close(
        F.log_softmax(x)[0], np.array([-np.log(2)] * 2 + [-2e4 - np.log(2)], dtype), terms=2
    )
    assert host(F.cross_entropy(x, xp.asarray([2, 0]))) > 1e4


@pytest.mark.parametrize(
    ("logits", "labels", "options", "message"),
    [
        (np.ones((2, 3)), np.array([0, 3]), {}, r"labels must be in \[0, 3\), got 0 to 3"),
        (np.ones((2, 3)), np.array([-1, 0]), {}, r"labels must be in \[0, 3\), got -1 to 0"),
        (np.ones((2, 3)), np.array([0.0, 1.0]), {}, r"labels \(N,\) integers.*float64"),
        (np.ones((2, 3)), np.array([0, 1, 2]), {}, r"got \(2, 3\) and \(3,\)"),
        (np.ones(3), np.array([0]), {}, r"logits must be \(N, K\)"),
        (np.ones((1, 3)), np.array([0]), {"label_smoothing": 1.5}, r"must be in \[0, 1\], got 1.5"),
    ],
)
def test_cross_entropy_refuses(logits: Any, labels: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        F.cross_entropy(logits, labels, **options)


def test_cross_entropy_takes_labels_as_an_array() -> None:
    for labels in ([0, 1], None):
        with pytest.raises(TypeError, match="labels must be a NumPy"):
            F.cross_entropy(np.ones((2, 3)), labels)


def leaf(array: Any) -> Tensor:
    return Tensor(array, requires_grad=True)


FAR = {"float16": 6e4, "float32": 3e38, "float64": 1.7e308}

# ---------------------------------------------------------------------------- 0 times infinity


@pytest.mark.parametrize("dtype", FAR)
@pytest.mark.parametrize("low", ["masked", "far"])
def test_a_class_of_probability_zero_is_left_out(dtype: str, low: str, xp: ModuleType) -> None:
    least = -np.inf if low == "masked" else -FAR[dtype]
    best = FAR[dtype] if low == "far" else 2.0
    logits = leaf(xp.asarray([[best, least, best], [0.0, best, least]], dtype))
    labels = xp.asarray([0, 1])
    loss = F.cross_entropy(logits, labels)
    first, second = np.log(2), np.log1p(np.exp(-best))
    rtol = 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(host(loss).astype(float), (first + second) / 2, rtol=rtol)
    loss.backward()
    p = 1 - 1 / (1 + np.exp(-best))
    expected = np.array([[-0.25, 0, 0.25], [p / 2, -p / 2, 0]])
    np.testing.assert_allclose(host(logits.grad).astype(float), expected, rtol=rtol, atol=rtol)
    for function in (F.softmax, F.log_softmax):
        x = leaf(logits.data)
        value = function(x)
        p = host(value) if function is F.softmax else np.exp(host(value))
        np.testing.assert_allclose(p.sum(axis=1), 1, rtol=rtol)
        assert p[0, 1] == p[1, 2] == 0
        value[:, 0].sum().backward()
        assert np.isfinite(host(x.grad)).all()


def test_smoothing_gives_each_class_a_share(xp: ModuleType) -> None:
    logits, labels = xp.asarray([[1.0, -np.inf], [0.0, 1.0]]), xp.asarray([0, 1])
    assert np.isinf(host(F.cross_entropy(logits, labels, label_smoothing=0.1)))  # the sum's value
    finite = xp.asarray([[1.0, 0.0], [0.0, 1.0]])
    whole = F.cross_entropy(finite, labels, label_smoothing=1.0)  # nothing is left of the label
    np.testing.assert_allclose(host(whole), np.log1p(np.exp(1)) - 0.5)
    assert np.isfinite(host(F.cross_entropy(finite, labels, label_smoothing=1)))
    # of a label without probability the loss is infinite, and the gradient finite
    x = leaf(logits)
    loss = F.cross_entropy(x, xp.asarray([1, 1]))
    loss.backward()
    assert np.isposinf(host(loss))
    np.testing.assert_allclose(host(x.grad)[0], [0.5, -0.5])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_without_any_class_there_is_no_distribution() -> None:
    x = np.array([[-np.inf, -np.inf], [0.0, 0.0]])
    for function in (F.softmax, F.log_softmax):
        value = function(x)
        assert np.isnan(value[0]).all()
        assert np.isfinite(value[1]).all()
        with pytest.raises(ValueError, match=r"a value along axis -1, got .*\(2, 0\)"):
            function(np.zeros((2, 0)))
    assert F.softmax(np.zeros((0, 2))).shape == (0, 2)


# ---------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 3]), r"labels must be in \[0, 3\), got 0 to 3"),
        (np.array([-1, 0]), r"labels must be in \[0, 3\), got -1 to 0"),
        (np.array([0.0, 1.0]), "integers.*float64"),
        (np.array([True, False]), "integers.*bool"),
        (np.eye(3, dtype=int)[:2], r"argmax\(axis=1\)"),
    ],
)
def test_wrong_labels_are_named(labels: Any, message: str) -> None:
    for wrapped in (labels, Tensor(labels)):
        with pytest.raises(ValueError, match=message):
            F.cross_entropy(np.zeros((2, 3)), wrapped)
