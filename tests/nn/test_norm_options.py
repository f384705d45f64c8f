"""Batch norm without weights, without running statistics, and with their cumulative average."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from bounds import assert_close, host
from ranks import run_ranks

from invocupy import Tensor, models, nn
from invocupy import functional as F  # noqa: N812
from invocupy.arrays import device_of

NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def batches(dims: int, count: int, xp: ModuleType = np, size: int = 4) -> list[Any]:
    rng = np.random.default_rng(dims)
    shape = (size, 3, *(2, 3, 2)[:dims])
    return [xp.asarray(rng.normal(2, 3, shape).astype(np.float32)) for _ in range(count)]


@pytest.mark.parametrize("dims", NORMS)
def test_a_cumulative_average_is_the_mean_of_all_batches(dims: int, xp: ModuleType) -> None:
    given = batches(dims, 3, xp)
    norm = NORMS[dims](3, momentum=None).to(device_of(given[0]))
    for x in given:
        norm(x)
    axes = (0, *range(2, dims + 2))
    means = np.mean([host(x).mean(axis=axes, dtype=np.float64) for x in given], axis=0)
    variances = np.mean([host(x).var(axis=axes, dtype=np.float64, ddof=1) for x in given], axis=0)
    for buffer, wanted in ((norm.running_mean, means), (norm.running_var, variances)):
        assert buffer.data.dtype == np.float32
        np.testing.assert_allclose(host(buffer.data), wanted, rtol=1e-6)
    assert int(norm.num_batches_tracked.data) == 3
    again = NORMS[dims](3, momentum=None)
    again.load_state_dict(norm.state_dict())
    again(host(given[0]))  # counts on
    np.testing.assert_allclose(
        again.running_mean.data, (3 * means + host(given[0]).mean(axis=axes)) / 4, rtol=1e-6
    )


@pytest.mark.parametrize("dims", NORMS)
def test_without_running_statistics_the_batch_has_them(dims: int, xp: ModuleType) -> None:
    (x,) = batches(dims, 1, xp)
    plain = NORMS[dims](3).to(device_of(x))
    norm = NORMS[dims](3, affine=False, track_running_stats=False).to(device_of(x))
    assert norm.state_dict() == {}
    wanted = plain(x).data
    for mode in (True, False):
        np.testing.assert_array_equal(host(norm.train(mode)(x)), host(wanted))
    assert norm.weight is norm.bias is norm.running_mean is norm.num_batches_tracked is None
    for mode in (True, False):
        with pytest.raises(ValueError, match=r"than one value per channel.* one: give larger"):
            norm.train(mode)(xp.ones((1, 3, *[1] * dims), np.float32))
    leaf, other = (Tensor(x, requires_grad=True) for _ in range(2))
    (norm(leaf) ** 3).sum().backward()
    (F.batch_norm(other, training=True) ** 3).sum().backward()
    np.testing.assert_array_equal(host(leaf.grad), host(other.grad))


def test_names_are_those_of_what_there_is() -> None:
    assert list(nn.BatchNorm2d(3, affine=False).state_dict()) == [
        "running_mean", "running_var", "num_batches_tracked"
    ]  # fmt: skip
    assert list(nn.BatchNorm2d(3, track_running_stats=False).state_dict()) == ["weight", "bias"]
    assert "num_features=3" in repr(nn.BatchNorm2d(3, affine=False, track_running_stats=False))
    x = batches(2, 1)[0]
    norm = nn.BatchNorm2d(3, affine=False)
    np.testing.assert_array_equal(norm(x), nn.BatchNorm2d(3)(x).data)
    assert (norm.running_mean.data != 0).all()
    np.testing.assert_array_equal(
        norm.eval()(x), F.batch_norm(x, norm.running_mean.data, norm.running_var.data)
    )


def test_of_several_ranks() -> None:
    """Their running averages are those of one process that sees all of the batch."""
    given = batches(2, 2, size=6)

    def work(comm: Any) -> Any:
        first, last = (0, 2) if comm.rank == 0 else (2, 6)
        norm = nn.BatchNorm2d(3, momentum=None, affine=False)
        apart = nn.BatchNorm2d(3, affine=False, track_running_stats=False)
        norm.comm = apart.comm = comm
        out = [norm(Tensor(x[first:last])).data for x in given]
        np.testing.assert_array_equal(apart(given[1][first:last]), out[1])
        sent = comm.messages
        apart.eval()(given[1][first:last])  # of this rank alone
        assert comm.messages == sent
        return norm, out[1]

    alone = nn.BatchNorm2d(3, momentum=None, affine=False)
    wanted = [alone(Tensor(x)).data for x in given][1]
    found = run_ranks(2, work)
    assert_close(np.concatenate([out for _, out in found]), wanted, terms=100)
    for norm, _ in found:
        np.testing.assert_allclose(norm.running_var.data, alone.running_var.data, rtol=1e-6)


@pytest.mark.parametrize("options", [{"affine": False, "track_running_stats": False}, {}])
def test_a_block_with_such_norms(options: dict[str, Any], xp: ModuleType) -> None:
    """Whether it runs as one operator or layer by layer, it gives the same."""
    x = xp.asarray(np.random.default_rng(0).normal(size=(3, 3, 6, 6)).astype(np.float32))
    made = []
    for fused in ("auto", False):
        block = models.SimpleBlock(3, 32, fused=fused, rng=np.random.default_rng(1))  # type: ignore[arg-type]
        block.expand_norm = nn.BatchNorm2d(32, momentum=None, **options)
        block.to(device_of(x))
        for _ in range(2):
            out = block(x)
        out.sum().backward()
        made.append((out.data, block.expand.weight.grad, *block.buffers()))
    for one, two in zip(*made, strict=True):
        np.testing.assert_allclose(host(one), host(two), rtol=1e-4, atol=1e-4)
