"""A block of the article's network on the CPU: its two wide operators, and the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bounds import DTYPES, PIXELS, SEEDS, agree, draw, filled, roundoff, sizes_of, wide
from hypothesis import example, given
from hypothesis import strategies as st

from invocupy import Tensor, functional, models, nn
from invocupy.autograd import apply
from invocupy.backends.contract import Perceptron
from invocupy.backends.cpu import involution_block as whole
from invocupy.backends.cpu import involution_sum, perceptron, threads
from invocupy.backends.reference import involution_block as whole_reference
from invocupy.backends.reference import involution_sum as involution_sum_reference
from invocupy.backends.reference import perceptron as perceptron_reference
from invocupy.geometry import Geometry
from invocupy.ops.block import involution_block


def check_perceptron(
    backend: Any, dtype: str, sizes: tuple[int, int, int, int, int, int, int], seed: int
) -> None:
    """Both passes of ``backend`` against the reference in float64."""
    batch, inputs, depth, groups, outputs, each, pixels = sizes
    hidden = depth * groups
    x, first, offset, dense, bias, grouped, grad, grad_grouped = draw(
        seed, dtype, (batch, inputs, pixels), (hidden, inputs), (hidden,), (outputs, hidden),
        (outputs,), (each, hidden), (batch, outputs, pixels), (batch, groups * each, pixels),
    )  # fmt: skip
    # keep the hidden layer away from ReLU's kink, where rounding decides what passes
    x, first, offset = (np.round(4 * a) / 4 for a in (x, first, offset))
    offset = (offset + np.float64(1) / 32).astype(dtype)
    weights = [x, first, offset, dense, bias, grouped]
    shapes = [grad.shape, grad_grouped.shape]
    terms = inputs + 1 + hidden + 1

    def forward(mode: Any) -> Any:
        return lambda x, *a: mode.forward(x, Perceptron(*a[:5]), groups, *a[5:])

    def backward(mode: Any) -> Any:
        return lambda *a: mode.backward(
            *a[:3], Perceptron(*a[3:8]), groups, a[8], Perceptron(*a[9:])
        )

    results = filled(forward(backend), weights, *shapes, dtype=dtype)
    exact = filled(forward(perceptron_reference), wide(*weights), *shapes, dtype=np.float64)
    bounds = filled(forward(perceptron_reference), sizes_of(*weights), *shapes, dtype=np.float64)
    agree(results, exact, [2 * roundoff(dtype, terms) * b for b in bounds])

    arguments = [grad, grad_grouped, *weights]
    shapes = [a.shape for a in (x, first, offset, dense, bias, grouped)]
    results = filled(backward(backend), arguments, *shapes, dtype=np.float64)
    exact = filled(backward(perceptron_reference), wide(*arguments), *shapes, dtype=np.float64)
    # the reference on absolute values, with every hidden channel passing
    bounds = filled(backward(perceptron_reference), sizes_of(*arguments), *shapes, dtype=np.float64)
    terms += outputs + each + batch * pixels
    agree(results, exact, [2 * roundoff(dtype, terms) * b for b in bounds])


@given(
    DTYPES,
    st.tuples(
        st.integers(1, 3), st.integers(1, 5), st.integers(1, 9), st.integers(1, 4),
        st.integers(1, 9), st.integers(1, 6), PIXELS,
    ),
    SEEDS,
)  # fmt: skip
@example("float32", (2, 3, 16, 4, 16, 3, 1024), 0)
@example("float64", (1, 1, 1, 1, 1, 1, 1), 0)
def test_perceptron_is_the_reference(
    dtype: str, sizes: tuple[int, int, int, int, int, int, int], seed: int
) -> None:
    # x is in the dtype's own results: float64 arrays take them without rounding
    class InFloat64:
        forward = staticmethod(perceptron.forward)

        @staticmethod
        def backward(*arguments: Any) -> None:
            *given, exact, grad_weights = arguments
            grad_x = np.full(exact.shape, np.nan, dtype)
            perceptron.backward(*given, grad_x, grad_weights)
            exact[...] = grad_x

    check_perceptron(InFloat64, dtype, sizes, seed)


def test_a_hidden_channel_of_the_wrong_group_is_found() -> None:
    class Wrong:
        @staticmethod
        def forward(x: Any, weights: Perceptron, *a: Any) -> None:
            turned = np.roll(weights.grouped, 1, axis=1)
            perceptron.forward(x, weights._replace(grouped=turned), *a)

    with pytest.raises(AssertionError):
        check_perceptron(Wrong, "float32", (2, 3, 4, 2, 5, 3, 70), 0)


@given(st.sampled_from(["float32", "float64"]), st.sampled_from([0.0, 1e3]), SEEDS)
def test_covariance_does_not_cancel(dtype: str, mean: float, seed: int) -> None:
    (noise,) = draw(seed, "float64", (3, 4, 50))
    x = (mean + noise).astype(dtype)
    exact = x.astype(np.float64)
    center = exact.mean(axis=(0, 2))
    (result,) = filled(perceptron.covariance, [x, center], (4, 4), dtype=np.float64)
    apart = (exact - center[:, None]).transpose(1, 0, 2).reshape(4, -1)
    size = abs(apart) @ abs(apart).T / apart.shape[1]
    assert (
        abs(result - apart @ apart.T / apart.shape[1]) <= 2 * roundoff("float64", 153) * size
    ).all()


SumSizes = tuple[int, int, int, int, tuple[int, int], tuple[int, int], tuple[int, int]]


def check_involution_sum(backend: Any, dtype: str, sizes: SumSizes, seed: int) -> None:
    """Both passes of ``backend`` against the reference in float64."""
    batch, each, groups, features, (kernel_h, kernel_w), dilation, (height, width) = sizes
    shape, channels = (height, width), groups * each
    taps = groups * kernel_h * kernel_w
    kernel_shape = (batch, groups, kernel_h, kernel_w, *shape)
    g = Geometry.of((batch, channels, *shape), kernel_shape, 1, "same", dilation)
    grad, x, z, scale, shift, weight, bias, offset = draw(
        seed, dtype, (batch, each, *shape), (batch, channels, *shape), (batch, features, *shape),
        (features,), (features,), (taps, features), (taps,), (each,),
    )  # fmt: skip
    # keep the features away from ReLU's kink, where rounding decides what passes
    z, scale, shift = (np.round(4 * a) / 4 for a in (z, scale, shift))
    shift = (shift + np.float64(1) / 32).astype(dtype)
    operands = [x, z, scale, shift, weight, bias]

    def forward(mode: Any) -> Any:
        return lambda *a: mode.forward(*a[:7], g, *a[7:])

    def backward(mode: Any) -> Any:
        return lambda *a: mode.backward(*a[:7], g, *a[7:])

    terms = 2 + features + 1 + taps + 1
    results = filled(forward(backend), [*operands, offset], grad.shape, dtype=dtype)
    exact, bounds = (
        filled(
            forward(involution_sum_reference), read(*operands, offset), grad.shape, dtype=np.float64
        )
        for read in (wide, sizes_of)
    )
    agree(results, exact, [2 * roundoff(dtype, terms) * b for b in bounds])

    in_dtype = [np.full(a.shape, np.nan, dtype) for a in (x, z)]
    in_float64 = [np.full(a.shape, np.nan) for a in (weight, bias)]
    backward(backend)(grad, *operands, *in_dtype, *in_float64)
    shapes = [a.shape for a in (x, z, weight, bias)]
    exact, bounds = (
        filled(backward(involution_sum_reference), read(grad, *operands), *shapes, dtype=np.float64)
        for read in (wide, sizes_of)
    )
    terms += batch * height * width + taps
    agree([*in_dtype, *in_float64], exact, [2 * roundoff(dtype, terms) * b for b in bounds])


@given(
    DTYPES,
    st.tuples(
        st.integers(1, 3), st.integers(1, 6), st.integers(1, 4), st.integers(1, 9),
        st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 7])),
        st.tuples(st.integers(1, 3), st.integers(1, 2)),
        st.tuples(st.integers(1, 12), st.integers(1, 40)),
    ),
    SEEDS,
)  # fmt: skip
@example("float32", (2, 3, 4, 16, (3, 3), (1, 1), (32, 32)), 0)
@example("float64", (1, 3, 4, 16, (7, 7), (1, 1), (61, 50)), 0)  # several bands
@example("float32", (40, 1, 1, 1, (1, 1), (1, 1), (1, 1)), 0)  # several images a part
def test_involution_sum_is_the_reference(dtype: str, sizes: SumSizes, seed: int) -> None:
    check_involution_sum(involution_sum, dtype, sizes, seed)


@pytest.mark.parametrize("argument", [0, 1, 2])
def test_a_shifted_row_or_group_in_an_involution_sum_is_found(argument: int) -> None:
    class Wrong:
        @staticmethod
        def forward(*a: Any) -> None:
            given = list(a)
            given[argument] = np.roll(given[argument], 1, axis=(1, 2, 0)[argument])
            involution_sum.forward(*given)

    with pytest.raises(AssertionError):
        check_involution_sum(Wrong, "float32", (2, 2, 2, 3, (3, 3), (1, 1), (7, 20)), 0)


def test_an_involution_sum_is_the_same_for_any_number_of_threads() -> None:
    g = Geometry.of((9, 6, 40, 33), (9, 2, 3, 5, 40, 33))
    grad, x, z, scale, shift, weight, bias, offset = draw(
        0, "float32", (9, 3, 40, 33), (9, 6, 40, 33), (9, 5, 40, 33), (5,), (5,), (30, 5), (30,),
        (3,),
    )  # fmt: skip
    _, *weights = whole_operands(1, "float32", 9, 3, 8, 5, 30, (40, 33))
    results = []
    for number in (1, 2, 5):
        threads.set_num_threads(number)
        try:
            operands = x, z, scale, shift, weight, bias
            shapes = [a.shape for a in (x, z, weight, bias)]
            value = np.empty_like(grad)
            involution_sum.forward(*operands, offset, g, value)
            gradients = [np.empty(s, d) for s, d in zip(shapes, "ffdd", strict=True)]
            involution_sum.backward(grad, *operands, g, *gradients)
            block = np.empty_like(grad)
            whole.forward(grad, *weights, (1e-5, 1e-5, 1e-5), True, g, block)
        finally:
            threads.set_num_threads(None)
        results.append([value, *gradients, block])
    for others in results[1:]:
        for first, other in zip(results[0], others, strict=True):
            np.testing.assert_array_equal(first, other)


BlockSizes = tuple[int, int, int, int, int, tuple[int, int], tuple[int, int], tuple[int, int], bool]


def check_whole_block(backend: Any, dtype: str, sizes: BlockSizes, seed: int) -> None:
    """``backend`` against the reference in float64."""
    batch, inputs, depth, groups, features, (kernel_h, kernel_w), dilation, shape, relu = sizes
    hidden, taps = depth * groups, groups * kernel_h * kernel_w
    kernel_shape = (batch, groups, kernel_h, kernel_w, *shape)
    g = Geometry.of((batch, groups * inputs, *shape), kernel_shape, 1, "same", dilation)
    x, parameters, moments = whole_operands(
        seed, dtype, batch, inputs, hidden, features, taps, shape
    )

    def forward(mode: Any) -> Any:
        return lambda *a: mode.forward(a[0], a[1:15], a[15:21], (1e-5, 1e-3, 1e-1), relu, g, a[21])

    (result,) = filled(forward(backend), [x, *parameters, *moments], x.shape, dtype=dtype)
    # The ReLUs move no value further than their arguments are off. Of a mean the size is a bound
    # where it is added, not taken away.
    upward = [-abs(a) if i in (0, 2, 4) else a for i, a in enumerate(wide(*moments))]
    exact, bound = (
        filled(forward(whole_reference), operands, x.shape, dtype=np.float64)[0]
        for operands in (wide(x, *parameters, *moments), [*sizes_of(x, *parameters), *upward])
    )
    terms = 2 * (inputs + 3) + 2 * (hidden + 3) + features + 1 + taps + 4
    agree([result], [exact], [2 * roundoff(dtype, terms) * bound])


def whole_operands(
    seed: int, dtype: str, batch: int, inputs: int, hidden: int, features: int, taps: int,
    shape: tuple[int, int],
) -> tuple[Any, list[Any], list[Any]]:  # fmt: skip
    """x, the parameters, and the moments."""
    channels = (hidden, features, inputs)
    x, *parameters = draw(
        seed, dtype, (batch, inputs, *shape), (hidden, inputs, 1, 1), *[(hidden,)] * 3,
        (features, hidden, 1, 1), *[(features,)] * 3, (taps, features, 1, 1), (taps,),
        (inputs, hidden, 1, 1), *[(inputs,)] * 3,
    )  # fmt: skip
    moments = draw(seed + 1, dtype, *[(number,) for number in channels for _ in range(2)])
    return x, parameters, [abs(a) if i % 2 else a for i, a in enumerate(moments)]


@given(
    DTYPES,
    st.tuples(
        st.integers(1, 3), st.integers(1, 6), st.integers(1, 9), st.integers(1, 4),
        st.integers(1, 9), st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 7])),
        st.tuples(st.integers(1, 3), st.integers(1, 2)),
        st.tuples(st.integers(1, 12), st.integers(1, 40)), st.booleans(),
    ),
    SEEDS,
)  # fmt: skip
@example("float32", (9, 3, 16, 4, 16, (3, 3), (1, 1), (32, 32), True), 0)
@example("float32", (1, 3, 16, 4, 16, (3, 3), (1, 1), (32, 32), True), 0)  # cut for two threads
@example("float64", (1, 3, 8, 4, 16, (7, 7), (1, 1), (61, 50), False), 0)  # several bands
@example("float32", (2, 1, 1, 5, 1, (1, 1), (1, 1), (20, 3), True), 0)  # cut, without a halo
def test_whole_block_is_the_reference(dtype: str, sizes: BlockSizes, seed: int) -> None:
    check_whole_block(whole, dtype, sizes, seed)


@pytest.mark.parametrize("argument", range(21))
def test_anything_shifted_in_a_whole_block_is_found(argument: int) -> None:
    class Wrong:
        @staticmethod
        def forward(x: Any, parameters: Any, moments: Any, *others: Any) -> None:
            given = [x, *parameters, *moments]
            axis = {0: 2, 11: 1}.get(argument, 0)  # a row; a channel of the next group
            given[argument] = np.roll(given[argument], 1, axis)
            whole.forward(given[0], given[1:15], given[15:], *others)

    sizes = (2, 2, 4, 2, 3, (3, 3), (1, 1), (7, 20), True)
    with pytest.raises(AssertionError):
        check_whole_block(Wrong, "float32", sizes, 0)


def test_a_whole_block_keeps_what_is_not_a_number_to_where_it_is_seen() -> None:
    """Nothing beyond the kernel's reach; and a ReLU does not hide it."""
    g = Geometry.of((1, 8, 40, 33), (1, 4, 3, 3, 40, 33))
    x, *weights = whole_operands(0, "float32", 1, 2, 16, 4, 36, (40, 33))
    options = (1e-5, 1e-5, 1e-5), True, g
    clean, spoiled = np.empty_like(x), np.empty_like(x)
    whole.forward(x, *weights, *options, clean)
    x[0, 1, 20, 32] = np.nan
    whole.forward(x, *weights, *options, spoiled)
    bad = np.isnan(spoiled[0])
    assert bad[:, 20, 32].all()
    bad_rows, bad_columns = np.nonzero(bad.any(axis=0))
    assert set(bad_rows) == {19, 20, 21}
    assert set(bad_columns) == {31, 32}
    np.testing.assert_array_equal(spoiled[0][~bad], clean[0][~bad])


def block_of(
    seed: int, dtype: str, channels: int, hidden: int, signed: bool = False
) -> models.SimpleBlock:
    """A block whose state is random, also what starts at 0 or 1."""
    rng = np.random.default_rng(seed)
    block = models.SimpleBlock(channels, hidden, fused=False, signed=signed, rng=rng)
    for name, value in block.named_state():
        if value.data.dtype == np.float32:
            moved = value.data + 0.3 * rng.standard_normal(value.data.shape)
            value.data = (abs(moved) + 0.1 if "var" in name else moved).astype(dtype)
    return block


def parameters_of(block: models.SimpleBlock) -> list[nn.Parameter]:
    layer = block.involution
    parts = [
        (block.expand, block.expand_norm), (layer.reduce, layer.norm), (layer.span, None),
        (block.project, block.last_norm),
    ]  # fmt: skip
    return [p for pair in parts for m in pair if m is not None for p in (m.weight, m.bias)]


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("channels", "signed"), [(1, False), (3, False), (3, True)])
def test_block_is_the_composition_of_its_layers(
    keep: bool, training: bool, channels: int, signed: bool
) -> None:
    block = block_of(0, "float64", channels, 32, signed).train(training)
    x, cotangent = draw(1, "float64", (3, channels, 6, 7), (3, channels, 6, 7))
    x += 2  # a stream has a mean
    norms = [block.expand_norm, block.involution.norm, block.last_norm]
    moments = [(norm.running_mean.data, norm.running_var.data) for norm in norms]
    gradients = []
    seen: list[Any] = []
    for fused in (False, True):
        operands = [Tensor(x, requires_grad=True), *parameters_of(block)]
        for operand in operands:
            operand.grad = None
        if fused:
            y = apply(
                involution_block, *operands, kernel_size=3, recompute=not keep,
                observe=lambda *used: seen.append(used),
                moments=None if training else tuple(moments), relu=not signed,
            )  # fmt: skip
        else:
            y = block(operands[0])
        y.backward(cotangent)
        gradients.append([y.data, *(operand.grad for operand in operands)])
    names = [name for name, _ in block.named_parameters()]
    for name, composed, fused in zip(["y", "x", *names], *gradients, strict=True):
        # float64, about a thousand terms; biases before a norm have gradient 0
        np.testing.assert_allclose(fused, composed, rtol=1e-10, atol=1e-10, err_msg=name)
    hidden = functional.conv2d(x, block.expand.weight.data, block.expand.bias.data)
    if training:
        (((mean, var), *_), count) = seen[0]
        np.testing.assert_allclose(mean, hidden.mean(axis=(0, 2, 3)), rtol=1e-12)
        np.testing.assert_allclose(var, hidden.var(axis=(0, 2, 3)), rtol=1e-10)
        assert count == 3 * 6 * 7


def test_what_is_stored_is_what_would_be_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, and the choice may change from step to step."""
    calls = []
    make = perceptron.forward
    monkeypatch.setattr(perceptron, "forward", lambda *a: calls.append(make(*a)))
    (x,) = draw(0, "float32", (3, 3, 9, 8))
    model = models.SimpleModel(9, 8, 16, num_layers=2, rng=0, recompute=False)
    assert not any(block.recompute for block in model.blocks)
    assert all(block.recompute for block in models.SimpleModel(num_layers=2).blocks)
    gradients = []
    for recompute in (False, True):
        calls.clear()
        for block in model.blocks:
            block.recompute = recompute
        model.zero_grad()
        functional.cross_entropy(model.logits(Tensor(x)), np.array([1, 0, 2])).backward()
        gradients.append([p.grad for p in model.parameters()])
        assert len(calls) == 2 + 2 * recompute
    for stored, again in zip(*gradients, strict=True):
        np.testing.assert_array_equal(stored, again)


def test_signed_blocks_begin_by_doing_nothing_and_may_take_away() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8))
    block = models.SimpleBlock(3, 16, signed=True, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(block(x).data, x)
    block.signed_norm.weight.data = np.ones(3, np.float32)
    assert (block(x).data < x).any()
    assert (models.SimpleBlock(3, 16, rng=np.random.default_rng(0))(x).data >= x).all()


def test_block_is_as_exact_in_float32_as_its_layers() -> None:
    x, cotangent = draw(1, "float64", (4, 3, 16, 16), (4, 3, 16, 16))
    x += 2
    results: dict[str, list[Any]] = {}
    for name in ("exact", "composed", "block"):
        dtype = "float64" if name == "exact" else "float32"
        block = block_of(0, "float32", 3, 64)
        for value in block.parameters():
            value.data = value.data.astype(dtype)
        operands = [Tensor(x.astype(dtype), requires_grad=True), *parameters_of(block)]
        if name == "block":
            y = apply(involution_block, *operands, kernel_size=3)
        else:
            y = block(operands[0])
        y.backward(cotangent.astype(dtype))
        results[name] = [y.data, *(operand.grad for operand in operands)]

    def error(name: str, i: int) -> float:
        exact = results["exact"][i]
        return float(np.linalg.norm(results[name][i] - exact) / np.linalg.norm(exact))

    for i in range(16):
        if i in (3, 7, 13):  # biases before a norm: their gradient is 0
            continue
        # at most a few times what the same steps in float32 lose
        assert error("block", i) <= 4 * error("composed", i) + 4 * float(np.finfo("f4").eps)


def test_block_gives_new_arrays_and_refuses_what_does_not_fit() -> None:
    block = block_of(0, "float64", 2, 16)
    arrays = [p.data for p in parameters_of(block)]
    (x,) = draw(0, "float64", (2, 2, 5, 6))
    with pytest.raises(ValueError, match="expand_weight must have shape"):
        involution_block(x[:, :1], *arrays, kernel_size=3)
    for place, name in ((1, "expand_bias"), (9, "span_bias"), (13, "project_norm_bias")):
        short = [a[:-1] if i == place else a for i, a in enumerate(arrays)]
        with pytest.raises(ValueError, match=f"{name} must have shape"):
            involution_block(x, *short, kernel_size=3)
    moments = [(np.zeros(n), np.ones(n)) for n in (16, 4, 1)]
    with pytest.raises(ValueError, match="moments must be three pairs"):
        involution_block(x, *arrays, kernel_size=3, moments=moments)
    with pytest.raises(ValueError, match="must not be empty"):
        involution_block(x[:0], *arrays, kernel_size=3)
    value, partials = involution_block(x, *arrays, kernel_size=3)
    grad = np.ones_like(value)
    first = [partial(grad) for partial in partials]
    for array, operand in zip(first, [x, *arrays], strict=True):
        assert array.shape == operand.shape
        kept = array.copy()
        array[...] = np.nan
        partial = partials[next(i for i, other in enumerate(first) if other is array)]
        np.testing.assert_array_equal(partial(grad), kept)
