"""Norms over the batch of several ranks equal those of one process on the whole batch.

Tolerances are what is promised of a distributed training: 1e-12 in float64 and 1e-6 in float32,
relative, in the norm of each array; and in float32 at most a few times the error that one process
has. A bias before a norm has the gradient 0: what rounding leaves of it is measured by the
gradient of the weight beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
from bounds import draw, host
from ranks import Rank, run_ranks

from invocupy import Tensor, models, nn, no_grad, ops
from invocupy import functional as F  # noqa: N812
from invocupy.arrays import device_of, require_cupy
from invocupy.ops import block_steps, normalization
from invocupy.ops.memo import sharing
from invocupy.ops.ranks import merge

SHARES = [(5,), (3, 2), (5, 0), (0, 4, 1), (1, 1, 1, 2), (0, 0, 6, 0)]
PROMISED = {"float64": 1e-12, "float32": 1e-6}
EPS = float(np.finfo(np.float32).eps)


class Outcome(NamedTuple):
    """What a training step leaves, of one process or of all ranks put together."""

    value: Any
    gradients: dict[str, Any]  # of parameters, and of "x" if that wants one
    buffers: dict[str, Any]
    messages: tuple[int, int]  # forward, backward


def step(
    make: Callable[[], nn.Module], x: Any, cotangent: Any, comm: Rank | None, wants_x: bool = True,
    residual: Any = None,
) -> Outcome:  # fmt: skip
    """Forward in training mode, and back."""
    model = joined(make().to(device_of(x)), comm)
    leaf = Tensor(x, requires_grad=wants_x)
    operand = None if residual is None else Tensor(residual, requires_grad=True)
    if isinstance(model, models.SimpleModel):
        value = model.logits(leaf)
    elif operand is not None:
        value = model(leaf, operand, relu=True)
    else:
        value = model(leaf)
    forward = comm.messages if comm else 0
    value.backward(cotangent)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    if wants_x:
        gradients["x"] = leaf.grad
    if operand is not None:
        gradients["residual"] = operand.grad
    buffers = {name: host(buffer) for name, buffer in model.named_buffers()}
    messages = forward, (comm.messages if comm else 0) - forward
    gradients = {name: host(gradient) for name, gradient in gradients.items()}
    return Outcome(host(value.data), gradients, buffers, messages)


def joined(model: nn.Module, comm: Rank | None) -> nn.Module:
    """The model with norms that ask the other ranks."""
    for module in model.modules():
        if hasattr(module, "comm"):
            module.comm = comm
    return model


def both(
    make: Callable[[], nn.Module], shares: tuple[int, ...], x: Any, cotangent: Any,
    residual: Any = None, wants_x: bool = True,
) -> tuple[Outcome, Outcome]:  # fmt: skip
    """One process on the whole batch; and the ranks, put together."""
    cuts = [slice(*ends) for ends in pairwise([0, *np.cumsum(shares)])]

    def task(comm: Rank) -> Outcome:
        mine = cuts[comm.rank]
        beside = None if residual is None else residual[mine]
        return step(make, x[mine], cotangent[mine], comm, wants_x, beside)

    one = step(make, x, cotangent, None, wants_x, residual)
    all_ = run_ranks(len(shares), task)
    together = {}
    for name, whole in one.gradients.items():
        parts = [rank.gradients[name] for rank in all_]
        assert {part.dtype for part in parts} == {whole.dtype}
        together[name] = np.concatenate(parts) if name in ("x", "residual") else sum(parts)
    for rank, size in zip(all_, shares, strict=True):
        if not size:
            gradients = [g for name, g in rank.gradients.items() if name not in ("x", "residual")]
            assert all((gradient == 0).all() for gradient in gradients)
        for name, buffer in rank.buffers.items():  # to the bit the same on all ranks
            np.testing.assert_array_equal(buffer, all_[0].buffers[name])
    assert len({rank.messages for rank in all_}) == 1
    value = np.concatenate([rank.value for rank in all_])
    return one, Outcome(value, together, all_[0].buffers, all_[0].messages)


def check(one: Outcome, together: Outcome, tolerance: float) -> None:
    """Equal to ``tolerance``, relative, in the norm of each array."""
    assert together.value.dtype == one.value.dtype
    assert_close(together.value, one.value, tolerance, "value")
    for name, gradient in one.gradients.items():
        scale = norm(one.gradients.get(name.replace(".bias", ".weight"), gradient))
        assert_close(together.gradients[name], gradient, tolerance, name, scale)
    for name, buffer in one.buffers.items():  # float32, whatever the moments are
        assert_close(together.buffers[name], buffer, max(tolerance, EPS), name)


def assert_close(
    found: Any, expected: Any, tolerance: float, name: str, scale: float = 0.0
) -> None:
    apart = norm(found.astype(np.float64) - expected)
    allowed = tolerance * max(norm(expected), scale)
    assert apart <= allowed, f"{name}: {apart} apart, allowed {allowed}"


def norm(array: Any) -> float:
    return float(np.linalg.norm(np.asarray(array, np.float64)))


def images(dtype: str, count: int, channels: int, size: int, seed: int = 0) -> Any:
    """Each image with a level of its own: what lies between the ranks counts."""
    (x,) = draw(seed, "float64", (count, channels, size, size))
    return (x + np.arange(count)[:, None, None, None] + 2).astype(dtype)


def batch_norm(dtype: str) -> nn.BatchNorm2d:
    layer, rng = nn.BatchNorm2d(4), np.random.default_rng(1)
    layer.weight.data, layer.bias.data = rng.standard_normal((2, 4)).astype(dtype)
    return layer


def simple_block(dtype: str, channels: int = 3, fused: Any = "auto") -> nn.Module:
    return to_dtype(models.SimpleBlock(channels, 32, fused, rng=np.random.default_rng(1)), dtype)


def to_dtype(model: nn.Module, dtype: str) -> nn.Module:
    rng = np.random.default_rng(2)
    for parameter in model.parameters():  # also what starts at 0 or 1
        moved = parameter.data + 0.1 * rng.standard_normal(parameter.shape)
        parameter.data = moved.astype(dtype)
    return model


def run_batch_norm(
    dtype: str, shares: tuple[int, ...], residual: bool, xp: ModuleType = np
) -> tuple[Outcome, Outcome]:
    x = xp.asarray(images(dtype, sum(shares), 4, 5))
    cotangent, beside = map(xp.asarray, draw(3, dtype, x.shape, x.shape))
    weights = "float64" if dtype == "float64" else "float32"
    return both(lambda: batch_norm(weights), shares, x, cotangent, beside if residual else None)


def run_block(
    dtype: str, shares: tuple[int, ...], xp: ModuleType = np, **options: Any
) -> tuple[Outcome, Outcome]:
    x = xp.asarray(images(dtype, sum(shares), options.get("channels", 3), 6))
    (cotangent,) = map(xp.asarray, draw(3, dtype, x.shape))
    return both(lambda: simple_block(dtype, **options), shares, x, cotangent)


@pytest.mark.gpu
@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("run", [lambda d, s, xp: run_batch_norm(d, s, True, xp), run_block])
def test_norms_on_a_gpu_are_those_of_one_process(run: Any, shares: tuple[int, ...]) -> None:
    one, together = run("float64", shares, xp=require_cupy())
    check(one, together, PROMISED["float64"])


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_batch_norm_is_that_of_one_process(
    dtype: str, shares: tuple[int, ...], residual: bool
) -> None:
    one, together = run_batch_norm(dtype, shares, residual)
    check(one, together, PROMISED[dtype])
    assert together.messages == (1, 1)


@pytest.mark.parametrize("shares", SHARES)
def test_batch_norm_of_half_precision_is_computed_in_float32(shares: tuple[int, ...]) -> None:
    one, together = run_batch_norm("float16", shares, residual=True)
    # float32 results that differ in their last digits may be rounded apart
    check(one, together, float(np.finfo(np.float16).eps))
    assert together.messages == (1, 1)


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        ("float64", {}), ("float64", {"channels": 1}), ("float64", {"fused": False}),
        ("float32", {}), ("float32", {"channels": 8}), ("float32", {"fused": False}),
    ],
)  # fmt: skip
def test_block_is_that_of_one_process(
    dtype: str, shares: tuple[int, ...], options: dict[str, Any]
) -> None:
    one, together = run_block(dtype, shares, **options)
    check(one, together, PROMISED[dtype])
    assert together.messages == (3, 3)


@pytest.mark.parametrize("shares", [(3, 2), (0, 4, 1)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_simple_model_is_that_of_one_process(dtype: str, shares: tuple[int, ...]) -> None:
    x = images(dtype, sum(shares), 3, 8)
    (cotangent,) = draw(3, dtype, (len(x), 10))

    def make() -> nn.Module:
        model = models.SimpleModel(8, 8, 32, num_layers=3, rng=1)
        for parameter in model.parameters():
            parameter.data = parameter.data.astype(dtype)
        return model

    one, together = both(make, shares, x, cotangent, wants_x=False)
    check(one, together, PROMISED[dtype])
    assert together.messages == (9, 9)


@pytest.mark.parametrize("make", [models.rednet26, models.resnet18])
def test_each_norm_of_a_deep_network_sends_two_messages(make: Any) -> None:
    def model() -> nn.Module:
        made: nn.Module = to_dtype(make(num_classes=5, stem="cifar", rng=0), "float64")
        return made

    x = images("float64", 4, 3, 8)
    (cotangent,) = draw(3, "float64", (4, 5))
    one, together = both(model, (3, 0, 1), x, cotangent, wants_x=False)
    check(one, together, PROMISED["float64"])
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model().modules())
    assert together.messages == (norms, norms)


def run_one_channel(dtype: str, shares: tuple[int, ...]) -> tuple[Outcome, Outcome]:
    """Whose norm undoes the scale of expand's weights, so that most of their gradient cancels."""
    return run_block(dtype, shares, channels=1)


@pytest.mark.parametrize("shares", [(3, 0, 2), (0, 4, 1)])
@pytest.mark.parametrize(
    "run", [lambda d, s: run_batch_norm(d, s, True), run_block, run_one_channel]
)
def test_ranks_are_as_exact_in_float32_as_one_process(run: Any, shares: tuple[int, ...]) -> None:
    one, together = run("float32", shares)
    exact, _ = run("float64", (5,))
    for name, gradient in exact.gradients.items():
        scale = norm(exact.gradients.get(name.replace(".bias", ".weight"), gradient))
        lost, alone = (
            norm(outcome.gradients[name] - gradient) / max(norm(gradient), scale)
            for outcome in (together, one)
        )
        assert lost <= 4 * alone + 4 * EPS, name


def forget_between(comm: Any, count: int, mean: Any, second: Any) -> Any:
    """Only what varies within each rank."""
    total, middle, _ = merge(comm, count, mean, second)
    rows = comm.allgather(np.append(count, second.reshape(-1)))
    within = (rows[:, :1] * rows[:, 1:]).sum(axis=0) / total
    return total, middle, within.reshape(second.shape)


def mean_of_variances(comm: Any, count: int, mean: Any, second: Any) -> Any:
    """Every rank counts the same."""
    total, middle, _ = merge(comm, count, mean, second)
    rows = comm.allgather(second.reshape(-1))
    return total, middle, rows.mean(axis=0).reshape(second.shape)


def mean_of_means(comm: Any, count: int, mean: Any, second: Any) -> Any:
    total, _, merged = merge(comm, count, mean, second)
    return total, comm.allgather(mean).mean(axis=0), merged


def local_sums(comm: Any, *parts: Any) -> Any:
    """Gradients through this rank's statistics alone."""
    comm.allgather(np.stack(parts))
    return np.stack(parts)


@pytest.mark.parametrize("run", [lambda d, s: run_batch_norm(d, s, True), run_block])
@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("merge", forget_between), ("merge", mean_of_variances), ("merge", mean_of_means),
        ("allreduce_sum", local_sums),
    ],
)  # fmt: skip
def test_planted_mistakes_are_found(
    name: str, mistake: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (normalization, block_steps):
        monkeypatch.setattr(module, name, mistake)
    one, together = run("float64", (3, 2))
    with pytest.raises(AssertionError):
        check(one, together, PROMISED["float64"])


def test_norms_that_differ_in_their_ranks_run_layer_by_layer() -> None:
    def task(comm: Rank) -> Any:
        part = simple_block("float32")
        part.project_norm.comm = comm
        part(Tensor(images("float32", 2, 3, 6)))
        return comm.messages

    assert run_ranks(2, task) == [1, 1]


def test_evaluation_sends_nothing() -> None:
    def task(comm: Rank) -> Any:
        model = models.SimpleModel(8, 8, 32, num_layers=1, rng=0)
        joined(model, comm).eval()
        model.logits(Tensor(images("float32", comm.rank, 3, 8))).sum().backward()
        return comm.messages

    assert run_ranks(2, task) == [0, 0]


def test_without_gradients_there_is_no_message_backward() -> None:
    def task(comm: Rank) -> Any:
        part = joined(simple_block("float32"), comm)
        with no_grad():
            part(Tensor(images("float32", comm.rank, 3, 6)))
        return comm.messages

    assert run_ranks(2, task) == [3, 3]


def test_partials_share_one_message_whichever_are_wanted() -> None:
    """A rank may want the gradient of x, another one that of the weight alone."""

    def task(comm: Rank) -> Any:
        x = images("float64", 2, 4, 3, seed=comm.rank)
        mean, var, count = normalization.merged_moments(x, comm)
        options = {"mean": mean, "var": var, "count": count, "training": True, "comm": comm}
        _, partials = ops.batch_norm(x, np.ones(4), np.zeros(4), **options)
        grad = np.ones(x.shape)
        with sharing(grad):
            for partial in partials[:2] if comm.rank else partials[1:3]:
                partial(grad)
        return comm.messages

    assert run_ranks(2, task) == [2, 2]


def test_functional_batch_norm_measures_by_itself() -> None:
    x = images("float64", 4, 2, 3)

    def task(comm: Rank) -> Any:
        return F.batch_norm(x[2 * comm.rank : 2 * comm.rank + 2], training=True, comm=comm)

    together = np.concatenate(run_ranks(2, task))
    np.testing.assert_allclose(together, F.batch_norm(x, training=True), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("count", "message"), [(0, "at least one value per channel"), (1, "more than one value")]
)
def test_too_few_values_of_all_ranks_are_refused_on_each(count: int, message: str) -> None:
    for make in (lambda: batch_norm("float32"), lambda: simple_block("float32", 4)):

        def task(comm: Rank, make: Any = make) -> None:
            layer = joined(make(), comm)
            with pytest.raises(ValueError, match=message):
                layer(Tensor(np.ones((count * comm.rank, 4, 1, 1), np.float32)))

        run_ranks(2, task)
