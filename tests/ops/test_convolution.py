"""Convolution: its formula, output by output, and what it refuses."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from bounds import SEEDS, assert_close, host
from hypothesis import given
from hypothesis import strategies as st
from op_table import ROWS, Row

import invocupy
from invocupy import backends, ops, testing
from invocupy import functional as F  # noqa: N812
from invocupy.backends.cuda import convolution as blocked
from invocupy.backends.reference import convolution as reference
from invocupy.geometry import output_size


def integers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-3, 4, shape).astype("float64")


# ---------------------------------------------------------------------------- convolution


def naive(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> np.ndarray:
    """The formula, output by output."""
    image, (o, c_group), size = x.shape[2:], weight.shape[:2], weight.shape[2:]
    axes = list(zip(image, size, stride, padding, dilation, strict=True))
    out = np.zeros((len(x), o, *(output_size(*axis) for axis in axes)))
    out += bias.reshape(-1, *[1] * len(size))
    for b, q, *position in np.ndindex(out.shape):
        first = q // (o // groups) * c_group
        for tap in np.ndindex(size):
            place = [
                i * s + u * d - p for i, u, (_, _, s, p, d) in zip(position, tap, axes, strict=True)
            ]
            if all(0 <= i < n for i, n in zip(place, image, strict=True)):
                seen = x[b, first : first + c_group, *place]
                out[b, q, *position] += weight[q, :, *tap] @ seen
    return out


LIMITS = {"max_batch": 2, "max_kernel": 3, "empty": False}
DRAWN = {
    1: testing.geometries(dims=1, max_size=9, **LIMITS),
    2: testing.geometries(max_size=5, **LIMITS),
    3: testing.geometries(dims=3, max_size=4, max_channels_per_group=2, max_groups=2, **LIMITS),
}


@pytest.mark.parametrize("dims", DRAWN)
@given(data=st.data(), per_group=st.integers(1, 3), seed=SEEDS)
def test_convolution_is_its_formula(
    dims: int, data: st.DataObject, per_group: int, seed: int, xp: ModuleType
) -> None:
    g, rng = data.draw(DRAWN[dims]), np.random.default_rng(seed)
    x = integers(rng, *g.x_shape)
    o = g.groups * per_group
    weight = integers(rng, o, g.channels_per_group, *g.kernel)
    bias = integers(rng, o)
    on_xp = [xp.asarray(a.astype("float32")) for a in (x, weight, bias)]
    chosen = {**testing.options(g), "groups": g.groups}
    value, partials = getattr(ops, f"conv{dims}d")(*on_xp, **chosen)
    expected = naive(x, weight, bias, **chosen)
    assert host(value).tolist() == expected.tolist()

    # <grad, linear part> = <grad_x, x> = <grad_weight, weight>, exactly.
    grad = integers(rng, *expected.shape)
    grads = [host(partial(xp.asarray(grad.astype("float32")))) for partial in partials]
    linear = (grad * (expected - bias.reshape(-1, *[1] * dims))).sum()
    assert (grads[0] * x).sum() == linear
    assert (grads[1] * weight).sum() == linear
    assert (grads[2] == grad.sum(axis=(0, *range(2, dims + 2)))).all()


@pytest.mark.parametrize(
    ("x", "weight", "options", "message"),
    [
        ((1, 2, 4), (2, 2, 3, 3), {}, r"x must be \(N, C, H, W\)"),
        ((1, 2, 4, 4), (2, 3, 3, 3), {}, r"x must be \(N, 3, H, W\) for weight \(2, 3, 3, 3\)"),
        ((1, 4, 4, 4), (3, 2, 3, 3), {"groups": 2}, "must have an O that groups=2 divides"),
        ((1, 2, 2, 2), (2, 2, 3, 3), {}, "too small for kernel size"),
        ((1, 2, 4, 4), (2, 2, 2, 2), {"padding": "same"}, "even kernel has no centre"),
        ((1, 2, 4, 4), (2, 2, 3, 3), {"stride": 0}, "stride must be an integer >= 1"),
        ((1, 2, 4, 4), (2, 2, 0, 3), {}, "weight must have at least one tap"),
    ],
)
def test_conv2d_refuses(x: Any, weight: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        F.conv2d(np.ones(x), np.ones(weight), **options)


@pytest.mark.parametrize(
    ("function", "x", "weight", "options", "message"),
    [
        (
            F.conv1d,
            (1, 2, 4, 4),
            (2, 2, 3),
            {},
            r"x must be \(N, C, W\) and weight \(O, C/groups, ",
        ),
        (F.conv3d, (1, 2, 4, 4, 4), (2, 2, 3, 3), {}, r"\(O, C/groups, Kd, Kh, Kw\), got"),
        (F.conv3d, (1, 2, 4, 4, 4), (2, 2, 3, 3, 3), {"stride": (1, 1)}, "1 or a triple of them"),
        (F.conv1d, (1, 2, 2), (2, 2, 3), {}, "x of 2 is too small for kernel size 3"),
    ],
)
def test_other_dimensions_refuse(
    function: Any, x: Any, weight: Any, options: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        function(np.ones(x), np.ones(weight), **options)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5,), (4, 1)])
def test_a_bias_that_would_be_read_past_its_end_is_refused(shape: tuple[int, ...]) -> None:
    x, bias = np.ones((2, 4, 5, 5)), np.ones(shape)
    with pytest.raises(ValueError, match=r"bias must have shape \(4,\)"):
        F.linear(x[0, :, 0], np.ones((4, 5)), bias)
    for size, groups in [(1, 1), (3, 1), (3, 4)]:
        with pytest.raises(ValueError, match=r"bias must have shape \(4,\)"):
            F.conv2d(x, np.ones((4, 4 // groups, size, size)), bias, groups=groups)


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.name == "conv2d"], ids=lambda r: r.variant
)
def test_conv2d_does_not_depend_on_its_blocks(
    row: Row, monkeypatch: pytest.MonkeyPatch, xp: ModuleType
) -> None:
    """The plain form, and blocks: a row of one image, one whole image, everything: to roundings."""
    arguments = row.draw(0, xp, "float64")
    of, results = backends.of, []
    for form, size in (reference, 0), (blocked, 1), (blocked, 4000), (blocked, 1 << 30):
        monkeypatch.setattr(
            backends, "of", lambda op, x, form=form: form if op == "convolution" else of(op, x)
        )
        monkeypatch.setattr(blocked, "_BLOCK", size)
        value, partials = row.run_op(*arguments)
        grad = xp.asarray(np.random.default_rng(1).standard_normal(value.shape))
        wanted = [p for p, a in zip(partials, arguments, strict=True) if a is not None]
        results.append([value, *(partial(grad) for partial in wanted)])
    for some in results[1:]:
        for one, other in zip(results[0], some, strict=True):
            assert_close(one, other, 100)  # sums of less than 100 terms


@given(g=testing.geometries(empty=False), seed=SEEDS)
def test_involution_with_a_constant_kernel_is_a_depthwise_convolution(
    g: invocupy.Geometry, seed: int, xp: ModuleType
) -> None:
    rng = np.random.default_rng(seed)
    x = xp.asarray(integers(rng, *g.x_shape).astype("float32"))
    weight = integers(rng, g.groups, *g.kernel).astype("float32")
    kernel = np.broadcast_to(weight[None, ..., None, None], g.kernel_shape)
    value = invocupy.involution(x, xp.asarray(kernel), **testing.options(g))
    depthwise = np.repeat(weight, g.channels_per_group, axis=0)[:, None]
    expected = F.conv2d(x, xp.asarray(depthwise), **testing.options(g), groups=g.channels)
    assert host(value).tolist() == host(expected).tolist()
