"""A block of the article's network against the composition of its layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bounds import draw

from invocupy import Tensor, functional, models, nn
from invocupy.autograd import apply
from invocupy.backends.cpu import perceptron
from invocupy.ops.block import involution_block


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
