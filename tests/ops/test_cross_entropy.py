"""Cross-entropy with its options, against its definition, label by label in float64."""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from bounds import SEEDS, assert_close, host
from hypothesis import given
from hypothesis import strategies as st

from invocupy import Tensor, nn
from invocupy import functional as F  # noqa: N812
from invocupy.ops import cross_entropy
from invocupy.testing import gradcheck

SHAPES = st.sampled_from([(), (1,), (3,), (2, 3), (2, 1, 2)])
REDUCTIONS = st.sampled_from(["mean", "sum", "none"])


def defined(
    logits: Any, labels: Any, smoothing: float, weight: Any, ignored: int | None, reduction: str
) -> tuple[Any, Any]:
    """The loss and its gradient for logits, where that of the loss is 1; after PyTorch's manual."""
    classes = logits.shape[1]
    weight = np.ones(classes) if weight is None else weight
    losses, counted, shares = [], [], []
    for n in range(len(logits)):
        for place in np.ndindex(logits.shape[2:]):
            x = logits[(n, slice(None), *place)].astype(np.float64)
            log_p = x - x.max() - np.log(np.exp(x - x.max()).sum())
            if labels.dtype.kind == "f":
                target, count = labels[(n, slice(None), *place)], 1.0
            elif labels[(n, *place)] == ignored:
                target, count = np.zeros(classes), 0.0
            else:
                target, count = np.eye(classes)[labels[(n, *place)]], weight[labels[(n, *place)]]
            share = weight * ((1 - smoothing) * target + smoothing / classes)
            share = share if target.any() or labels.dtype.kind == "f" else 0 * share
            losses.append(-(share * log_p).sum())
            shares.append(np.exp(log_p) * share.sum() - share)
            counted.append(count)
    factor = 1 / sum(counted) if reduction == "mean" else 1.0
    grad = np.array(shares).reshape(len(logits), -1, classes).swapaxes(1, 2).reshape(logits.shape)
    if reduction == "none":
        return np.array(losses).reshape(len(logits), *logits.shape[2:]), grad
    return np.array(sum(losses) * factor), grad * factor


@given(
    seed=SEEDS, shape=SHAPES, smoothing=st.sampled_from([0.0, 0.1]), weighted=st.booleans(),
    ignored=st.sampled_from([-100, 1, 7, None]), soft=st.booleans(), reduction=REDUCTIONS,
    dtype=st.sampled_from(["float16", "float32", "float64"]),
)  # fmt: skip
def test_the_definition(
    seed: int, shape: Any, smoothing: float, weighted: bool, ignored: int | None, soft: bool,
    reduction: str, dtype: str, xp: ModuleType,
) -> None:  # fmt: skip
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(3, 4, *shape)).astype(dtype)
    if soft:
        labels, ignored = draw.random((3, 4, *shape)), None
    else:
        labels = draw.integers(0, 4, (3, *shape)).astype(draw.choice(["int64", "uint8", "int32"]))
        if ignored is not None and labels.dtype != np.uint8:
            labels.reshape(-1)[0] = ignored
        labels.reshape(-1)[-1] = 2  # one that counts
    weight = draw.choice([0.5, 1.0, 3.0], 4) if weighted else None
    value, grad = defined(logits, labels, smoothing, weight, ignored, reduction)
    x = Tensor(xp.asarray(logits), requires_grad=True)
    loss = F.cross_entropy(
        x, xp.asarray(labels), smoothing, weight=None if weight is None else xp.asarray(weight),
        ignore_index=ignored, reduction=reduction,
    )  # fmt: skip
    assert loss.dtype == x.dtype
    terms = 30 + 4 * labels.size
    assert_close(loss, xp.asarray(value.astype(dtype)), terms=terms)
    loss.backward(xp.ones_like(loss.data))
    assert_close(x.grad, xp.asarray(grad.astype(dtype)), terms=terms)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weight", [None, np.array([0.5, 0.0, 2.0])])
def test_gradients_by_differences(reduction: str, weight: Any) -> None:
    draw = np.random.default_rng(0)
    logits, shares = draw.normal(size=(2, 2, 3, 2))
    labels = np.array([[0, 2], [-5, 1]])

    def hard(x: Any) -> Any:
        options: Any = {"weight": weight, "ignore_index": -5, "reduction": reduction}
        return F.cross_entropy(x, labels, 0.1, **options)

    gradcheck(hard, logits)
    gradcheck(
        lambda x, y: F.cross_entropy(x, y, 0.1, weight=weight, reduction=reduction), logits, shares
    )


def test_one_hot_floats_are_labels() -> None:
    logits, labels = np.random.default_rng(0).normal(size=(5, 4)), np.array([0, 3, 1, 1, 2])
    np.testing.assert_allclose(
        F.cross_entropy(logits, np.eye(4)[labels], 0.3), F.cross_entropy(logits, labels, 0.3)
    )
    soft = Tensor(np.eye(4, dtype=np.float32)[labels], requires_grad=True)
    loss = F.cross_entropy(logits, soft)
    loss.backward()
    assert (loss.dtype, soft.grad.dtype) == (np.float64, np.float32)


def test_where_no_label_counts(xp: ModuleType) -> None:
    """NaN without a warning, and no gradient, as in PyTorch; whatever the logits are."""
    weighed = [[1.0, 2.0], [3.0, 1.0]], {"weight": [1.0, 0.0]}
    for data, options, smoothing in (
        ([[np.nan, np.inf], [1.0, 2.0]], {}, 0.0), (*weighed, 0.0), (*weighed, 0.1),
    ):  # fmt: skip
        labels = xp.asarray([1, 1] if options else [-100, -100])
        given = {name: xp.asarray(value) for name, value in options.items()}
        x = Tensor(xp.asarray(data), requires_grad=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "invalid value", RuntimeWarning, "invocupy.ops.loss")
            loss = F.cross_entropy(x, labels, smoothing, **given)
            loss.backward()
        assert np.isnan(loss.item())
        assert host(x.grad).tolist() == [[0, 0], [0, 0]]
    x = Tensor(xp.zeros((0, 3, 2)), requires_grad=True)
    loss = F.cross_entropy(x, xp.zeros((0, 2), np.int64), weight=xp.ones(3))
    loss.backward()
    assert loss.item() == 0


def test_a_class_without_weight_is_left_out(xp: ModuleType) -> None:
    logits, weight = xp.asarray([[0.0, -np.inf, 0.0]]), xp.asarray([1.0, 0.0, 1.0])
    for labels in (xp.asarray([0]), xp.asarray([[0.5, 0.0, 0.5]])):
        loss = F.cross_entropy(logits, labels, 0.3 * (labels.ndim == 1), weight=weight)
        assert np.isfinite(host(loss))


def test_the_layer_has_the_options() -> None:
    weight = np.array([1.0, 2.0, 0.5], np.float32)
    layer = nn.CrossEntropyLoss(0.1, weight=weight, ignore_index=1, reduction="none")
    logits, labels = np.eye(3, dtype=np.float32), np.array([0, 1, 2])
    options: Any = {"weight": weight, "ignore_index": 1, "reduction": "none"}
    np.testing.assert_array_equal(
        layer(logits, labels), F.cross_entropy(logits, labels, 0.1, **options)
    )
    assert list(layer.state_dict()) == ["weight"]
    assert list(nn.CrossEntropyLoss().state_dict()) == []
    with pytest.raises(TypeError, match="weight must be a NumPy or CuPy array, got list"):
        nn.CrossEntropyLoss(weight=[1.0, 2.0])  # type: ignore[arg-type]
    for wrong in (-1.0, np.nan):
        with pytest.raises(ValueError, match="weight: NaN or values below 0"):
            layer.load_state_dict({"weight": np.full(3, wrong, np.float32)})


LOGITS = np.zeros((2, 3, 2))


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (
            [[0, 1], [3, -100]],
            {},
            r"in \[0, 3\), got 0 to 3: labels\[1, 0\] is 3 \(only",
        ),
        ([[0, -1], [3, 0]], {"ignore_index": None}, r"got -1 to 3: labels\[0, 1\] is -1$"),
        ([[0, 1], [-100, 0]], {"ignore_index": 2}, r"labels\[1, 0\] is -100"),
        ([[0, 1]], {}, r"\(N, K\) floats.*got \(2, 3, 2\) and \(1, 2\) of int64"),
        (LOGITS[:, :2], {}, r"floats of the shape of logits, got .* \(2, 2, 2\) of float64"),
        (
            LOGITS,
            {"ignore_index": 0},
            "ignore_index must be below 0 or None for soft .* got 0",
        ),
        (LOGITS, {"ignore_index": 1.0}, r"ignore_index must be an integer or None, got 1\.0"),
        (LOGITS, {"ignore_index": True}, "ignore_index must be an integer or None, got True"),
        (LOGITS, {"reduction": "avg"}, "reduction must be 'mean', 'sum' or 'none', got 'avg'"),
        (LOGITS, {"weight": np.ones(2)}, r"weight must be floats of shape \(3,\).* got \(2,\) of"),
        (LOGITS, {"weight": np.ones(3, int)}, r"weight must be floats .* of int64"),
        (LOGITS, {"weight": np.array([1, -1.0, 0])}, "weight must be finite numbers >= 0, got"),
        (LOGITS, {"weight": np.array([1, np.nan, 0])}, "weight must be finite numbers >= 0, got"),
    ],
)
def test_what_does_not_fit_is_named(labels: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        F.cross_entropy(LOGITS, np.asarray(labels), **options)


def test_a_weight_is_an_array() -> None:
    for weight in ([1.0, 1.0, 1.0], Tensor(np.ones(3)), 1.0):
        with pytest.raises(TypeError, match="weight must be a NumPy array like logits, got"):
            F.cross_entropy(LOGITS, LOGITS, weight=weight)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="labels have no gradient"):
        cross_entropy(np.ones((1, 2)), np.array([0]))[1][1](np.ones(()))
