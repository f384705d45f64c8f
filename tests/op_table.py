"""One row for each operator and way to call it: ``ops/test_ops.py`` runs over all of them.

To add an operator, add its rows. Values keep away from kinks (ReLU at 0, two equal maxima), where
no gradient can be checked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from invocupy import Tensor, functional, ops
from invocupy.arrays import namespace

Draw = Callable[[np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Row:
    """How to call one operator.

    ``arguments`` are drawn where they are functions, and passed as they are otherwise; an optional
    one that is left out is ``None``, since an operator gives a partial for each. ``op`` and
    ``function`` are ``ops.NAME`` and ``functional.NAME`` unless they are given.
    """

    name: str
    arguments: list[Any]
    options: dict[str, Any] = field(default_factory=dict)
    op: Callable[..., Any] | None = None
    function: Callable[..., Any] | None = None
    variant: str = ""

    def draw(self, seed: int, xp: Any, dtype: str) -> list[Any]:
        """The arguments as arrays of ``xp``; floating ones in ``dtype``."""
        rng = np.random.default_rng(seed)
        drawn = [a(rng) if callable(a) else a for a in self.arguments]
        return [
            a
            if not isinstance(a, np.ndarray)
            else xp.asarray(a.astype(dtype) if a.dtype.kind == "f" else a)
            for a in drawn
        ]

    def run_op(self, *arrays: Any) -> Any:
        """``(value, partials)``."""
        return (self.op or getattr(ops, self.name))(*arrays, **self.options)

    def run(self, *arrays: Any) -> Any:
        """The value, through :mod:`invocupy.functional`."""
        return (self.function or getattr(functional, self.name))(*arrays, **self.options)


def normal(*shape: int) -> Draw:
    return lambda rng: rng.standard_normal(shape)


def small(*shape: int) -> Draw:
    """In [-0.3, 0.3]."""
    return lambda rng: rng.uniform(-0.3, 0.3, shape)


def positive(*shape: int) -> Draw:
    """In [0.5, 1.5]."""
    return lambda rng: rng.uniform(0.5, 1.5, shape)


def away(*shape: int, size: float = 1.0) -> Draw:
    """Of both signs, away from zero."""
    return lambda rng: rng.choice([-size, size], shape) * rng.uniform(0.5, 1.5, shape)


def distinct(*shape: int) -> Draw:
    """In [-2, 2], no two of them close."""
    count = int(np.prod(shape))
    return lambda rng: rng.permutation(np.linspace(-2, 2, count)).reshape(shape)


def checkered(*shape: int) -> Draw:
    """Signs like a chessboard's colours: away from zero also when the mean is taken off."""
    signs = 1.0 - 2 * (np.indices(shape).sum(axis=0) % 2)
    return lambda rng: signs * rng.uniform(1.0, 1.2, shape)


def labels(count: int, classes: int) -> Draw:
    return lambda rng: rng.integers(0, classes, count)


def flags(*shape: int) -> Draw:
    """True and false."""
    return lambda rng: rng.permuted(np.arange(int(np.prod(shape))) % 2 == 0).reshape(shape)


def _train_norm(x: Any, *others: Any, **options: Any) -> Any:
    mean, var = ops.batch_moments(x)
    return ops.batch_norm(x, *others, mean=mean, var=var, training=True, **options)


def _train_norm_function(x: Any, weight: Any, bias: Any, residual: Any, **options: Any) -> Any:
    return functional.batch_norm(
        x, weight=weight, bias=bias, training=True, residual=residual, **options
    )


def _statistics(x: Any) -> tuple[Any, Any]:
    xp = namespace(x.data if isinstance(x, Tensor) else x)
    return xp.linspace(-1.0, 1.0, x.shape[1]), xp.linspace(0.5, 2.0, x.shape[1])


def _fixed_norm(x: Any, weight: Any, bias: Any, residual: Any) -> Any:
    mean, var = _statistics(x)
    return ops.batch_norm(x, weight, bias, residual, mean=mean, var=var, training=False)


def _fixed_norm_function(x: Any, weight: Any, bias: Any, residual: Any) -> Any:
    return functional.batch_norm(x, *_statistics(x), weight, bias, residual=residual)


NORM: dict[str, Any] = {"op": _train_norm, "function": _train_norm_function}
STRIDED = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}

ROWS = [
    Row("add", [normal(2, 3), normal(3)]),
    Row("add", [normal(2, 1, 3), normal(4, 1)], variant="both stretched"),
    Row("add", [normal(2, 3), 1.5], variant="number"),
    Row("subtract", [normal(2, 3), normal(2, 1)]),
    Row("subtract", [2, normal(2, 3)], variant="from number"),
    Row("multiply", [normal(2, 3), normal(3)]),
    Row("multiply", [normal(), normal(2, 3)], variant="no dimensions"),
    Row("divide", [normal(2, 3), away(3)]),
    Row("divide", [1.0, away(2, 3)], variant="number"),
    Row("power", [positive(2, 3), normal(3)]),
    Row("power", [away(2, 3), 2], variant="square"),
    Row("power", [3.0, normal(2, 3)], variant="of number"),
    Row("maximum", [away(2, 3), small(3)]),
    Row("maximum", [away(2, 3), 0.0], variant="number"),
    Row("minimum", [away(2, 3), small(3)]),
    Row("minimum", [0.0, away(2, 3)], variant="of number"),
    Row("clip", [distinct(2, 3), small(3), positive(2, 1)]),
    Row("clip", [distinct(2, 3), -0.5, 1.5], variant="numbers"),
    Row("clip", [distinct(2, 3), None, 0.5], variant="from above"),
    Row("clip", [distinct(2, 3), 0.5, None], variant="from below"),
    Row("where", [flags(2, 1, 3), normal(2, 3), normal(3)]),
    Row("where", [flags(2, 3), 1.0, normal(2, 3)], variant="number"),
    Row("matmul", [normal(2, 3), normal(3, 4)]),
    Row("matmul", [normal(5, 2, 3), normal(3, 4)], variant="stretched"),
    Row("negative", [normal(2, 3)]),
    Row("absolute", [away(2, 3)]),
    Row("exp", [normal(2, 3)]),
    Row("log", [positive(2, 3)]),
    Row("sqrt", [positive(2, 3)]),
    Row("tanh", [normal(2, 3)]),
    Row("sigmoid", [normal(2, 3)]),
    Row("relu", [away(2, 3)]),
    Row("sum", [normal(2, 3, 4)]),
    Row("sum", [normal(2, 3, 4)], {"axis": (0, -1)}, variant="axes"),
    Row("sum", [normal(2, 3, 4)], {"axis": 1, "keepdims": True}, variant="keepdims"),
    Row("mean", [normal(2, 3, 4)]),
    Row("mean", [normal(2, 3, 4)], {"axis": -2}, variant="axis"),
    Row("mean", [normal(2, 3, 4)], {"axis": (2, 0), "keepdims": True}, variant="keepdims"),
    Row("max", [distinct(2, 3, 4)]),
    Row("max", [distinct(2, 3, 4)], {"axis": (0, 2)}, variant="axes"),
    Row("max", [distinct(2, 3, 4)], {"axis": -1, "keepdims": True}, variant="keepdims"),
    Row("reshape", [normal(2, 3, 4)], {"shape": (4, -1)}),
    Row(
        "flatten",
        [normal(2, 3, 4)],
        op=lambda x: ops.reshape(x, (2, 12)),
    ),
    Row("transpose", [normal(2, 3, 4)]),
    Row("transpose", [normal(2, 3, 4)], {"axes": (2, 0, 1)}, variant="axes"),
    Row("transpose", [normal(2, 3, 4)], {"axes": (0, -1, 1)}, variant="negative axis"),
    Row(
        "concatenate",
        [normal(2, 3), normal(2, 1), normal(2, 2)],
        {"axis": 1},
        function=lambda *parts, axis: functional.concatenate(parts, axis),
    ),
    *(
        Row("getitem", [normal(3, 4)], {"index": index}, function=_getitem, variant=variant)
        for _getitem in [lambda x, index: x[index]]
        for variant, index in {
            "integer": 1,
            "slices": (slice(None, None, -1), slice(1, 3)),
            "new axis": (..., None, 2),
            "repeated": np.array([0, 2, 2]),
            "negative repeats": ([0, -3], [1, 1]),
        }.items()
    ),
    Row("dropout", [normal(4, 5)], {"rng": np.array([3, 4], np.uint32)}),
    Row("softmax", [normal(3, 4)]),
    Row("softmax", [normal(2, 3, 4)], {"axis": 1}, variant="axis"),
    Row("log_softmax", [normal(3, 4)]),
    Row("log_softmax", [normal(2, 3, 4)], {"axis": 1}, variant="axis"),
    Row("cross_entropy", [normal(5, 4), labels(5, 4)]),
    Row("cross_entropy", [normal(5, 4), labels(5, 4)], {"label_smoothing": 0.2}, variant="smooth"),
    Row("cross_entropy", [normal(5, 4), normal(5, 4)], variant="soft"),
    Row("linear", [normal(4, 3), normal(2, 3), normal(2)]),
    Row("linear", [normal(4, 3), normal(2, 3), None], variant="no bias"),
    Row("conv2d", [normal(2, 3, 5, 4), normal(4, 3, 3, 3), normal(4)], {"padding": 1}),
    Row("conv2d", [normal(2, 3, 6, 7), normal(4, 3, 3, 2), None], STRIDED, variant="strided"),
    Row("conv2d", [normal(2, 4, 5, 4), normal(6, 2, 3, 3), None], {"groups": 2}, variant="groups"),
    Row(
        "conv2d",
        [normal(2, 4, 5, 4), normal(4, 1, 3, 3), normal(4)],
        {"groups": 4, "padding": "same", "dilation": 2},
        variant="depthwise",
    ),
    Row("conv2d", [normal(2, 3, 5, 4), normal(4, 3, 1, 1), normal(4)], variant="1x1"),
    Row(
        "conv2d",
        [normal(2, 3, 5, 4), normal(4, 3, 1, 1), None],
        {"stride": 2},
        variant="1x1 strided",
    ),
    Row("conv1d", [normal(2, 4, 9), normal(6, 2, 3), normal(6)], {"groups": 2, "stride": 2}),
    Row("conv1d", [normal(2, 3, 5), normal(4, 3, 1), None], variant="1x1"),
    Row("conv3d", [normal(2, 3, 3, 5, 4), normal(4, 3, 2, 3, 3), normal(4)], {"padding": 1}),
    Row("conv3d", [normal(2, 3, 2, 3, 4), normal(4, 3, 1, 1, 1), normal(4)], variant="1x1"),
    Row("max_pool1d", [distinct(2, 2, 7)], {"kernel_size": 3, "stride": 2, "padding": 1}),
    Row("max_pool3d", [distinct(2, 2, 3, 4, 5)], {"kernel_size": 2, "padding": 1}),
    Row("avg_pool1d", [normal(2, 2, 7)], {"kernel_size": 2, "ceil_mode": True}),
    Row(
        "avg_pool3d",
        [normal(2, 2, 3, 4, 5)],
        {"kernel_size": 2, "ceil_mode": True, "count_include_pad": False},
    ),
    Row("max_pool2d", [distinct(2, 2, 4, 6)], {"kernel_size": 2}),
    Row(
        "max_pool2d",
        [distinct(2, 2, 5, 6)],
        {"kernel_size": 3, "stride": (2, 1), "padding": 1},
        variant="overlapping",
    ),
    Row("avg_pool2d", [normal(2, 2, 4, 6)], {"kernel_size": 2}),
    Row("avg_pool2d", [normal(2, 2, 5, 7)], {"kernel_size": 2, "ceil_mode": True}, variant="ceil"),
    Row(
        "avg_pool2d",
        [normal(2, 2, 5, 6)],
        {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False},
        variant="valid pixels",
    ),
    Row("batch_norm", [normal(3, 2, 3, 4), normal(2), normal(2), None], **NORM),
    Row("batch_norm", [normal(6, 2), normal(2), normal(2), None], variant="1d", **NORM),
    Row("batch_norm", [normal(2, 2, 2, 1, 3), normal(2), normal(2), None], variant="3d", **NORM),
    Row(
        "batch_norm",
        [checkered(3, 2, 3, 4), positive(2), small(2), None],
        {"relu": True, "eps": 1e-3},
        variant="relu",
        **NORM,
    ),
    Row(
        "batch_norm",
        [normal(3, 2, 3, 4), positive(2), small(2), away(3, 2, 3, 4, size=20.0)],
        {"relu": True},
        variant="residual and relu",
        **NORM,
    ),
    Row(
        "batch_norm",
        [normal(3, 2, 3, 4), normal(2), normal(2), None],
        op=_fixed_norm,
        function=_fixed_norm_function,
        variant="fixed statistics",
    ),
    Row(
        "local_self_attention",
        [normal(2, 4, 5, 4), normal(2, 4, 5, 4), normal(2, 6, 5, 4), normal(2, 3, 3, 2)],
        {"kernel_size": 3, "heads": 2},
    ),
    Row(
        "local_self_attention",
        [normal(2, 3, 5, 6), normal(2, 3, 5, 6), normal(2, 2, 5, 6), None],
        {"kernel_size": (1, 5), "dilation": (1, 2)},
        variant="no positions, dilated",
    ),
    Row(
        "self_attention", [normal(2, 4, 3, 4), normal(2, 4, 3, 4), normal(2, 6, 3, 4)], {"heads": 2}
    ),
    Row("involution", [normal(2, 4, 5, 4), normal(2, 2, 3, 3, 5, 4)]),
    Row("involution", [normal(2, 3, 6, 7), normal(2, 1, 3, 2, 3, 9)], STRIDED, variant="strided"),
    Row("involution", [normal(2, 4, 7), normal(2, 2, 3, 4)], {"stride": 2}, variant="1d"),
    Row(
        "involution",
        [normal(2, 4, 4, 3, 5), normal(2, 2, 3, 3, 2, 2, 3, 6)],
        {"stride": (2, 1, 1), "padding": 1},
        variant="3d",
    ),
    Row(
        "fused_involution",
        [normal(2, 4, 7), normal(2, 3, 7), normal(10, 3), normal(10)],
        {"kernel_size": 5},
        variant="1d",
    ),
    Row(
        "fused_involution",
        [normal(1, 4, 3, 4, 5), normal(1, 2, 3, 4, 5), normal(54, 2), normal(54)],
        {"kernel_size": 3},
        variant="3d",
    ),
    Row(
        "fused_involution",
        [normal(2, 4, 5, 4), normal(2, 3, 5, 4), normal(18, 3), normal(18)],
        {"kernel_size": 3},
    ),
    Row(
        "fused_involution",
        [normal(2, 3, 6, 7), normal(2, 2, 3, 9), normal(6, 2), None],
        {"kernel_size": (3, 2), **STRIDED},
        variant="strided, no bias",
    ),
]
rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.name} {row.variant}".strip())
