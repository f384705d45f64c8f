"""A share of a batch for each rank, and gradients summed over all."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rank_jobs import PLAIN
from ranks import Rank, run_ranks

from invocupy import functional as F  # noqa: N812
from invocupy import nn
from invocupy.data import Batches
from invocupy.distributed import Single
from invocupy.train import (
    Config,
    ConfigError,
    augmentation,
    build,
    check_memory,
    estimate,
    fit,
    load_data,
    replica,
)
from invocupy.train.replica import Message, Replica


def test_the_smallest_number_of_images_that_a_norm_sees() -> None:
    """Of one process that of a part; of several a share, where norms are not of all ranks."""
    for ranks, sync, accumulate, images, wanted in (
        (1, True, 1, 40, [20]), (1, True, 1, 41, [1]), (1, True, 1, 7, [7]), (1, True, 3, 40, [6]),
        (2, True, 1, 41, [1, 1]), (2, True, 1, 42, [2, 2]), (3, True, 1, 42, [2, 2, 2]),
        (2, False, 1, 43, [1, 2]), (2, False, 1, 40, [10, 10]),
    ):  # fmt: skip
        config = Config(batch_size=20, accumulate=accumulate, sync_norm=sync)
        for rank in range(ranks):
            comm: Any = SimpleNamespace(rank=rank, size=ranks, device="cpu")
            assert Replica(comm, config).smallest(images) == wanted[rank], (ranks, sync, images)


def test_shares_of_a_batch() -> None:
    """Each row belongs to one rank, or all of them to each where there are too few."""
    for ranks in (2, 3, 5):
        comms = [SimpleNamespace(rank=rank, size=ranks, device="cpu") for rank in range(ranks)]
        for count in range(1, 23):
            for size in (1, 4, 7, count):
                config = replace(PLAIN, batch_size=size, accumulate=1)
                copies = [Replica(comm, config) for comm in comms]
                cut = [copy.split(count) for copy in copies]
                wanted = [copy.rows()(count).tolist() for copy in copies]
                for same in zip(*cut, strict=True):
                    of = sorted(i for part in same for i in range(part.first, part.last))
                    times = ranks if same[0].shared else 1
                    assert of == sorted(list(range(of[0], of[-1] + 1)) * times)
                    assert all(part.last > part.first for part in same)
                assert {i for some in wanted for i in some} == set(range(count))


def test_ranks_augment_their_own_rows_as_one_process_would() -> None:
    images, labels = load_data(PLAIN, train=True)
    options = {"seed": 3, "augment": augmentation(PLAIN), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    whole = list(Batches(images, labels, 7, **options).epoch(2, 1))
    for ranks in (2, 3):
        found: list[dict[int, Any]] = [{} for _ in whole]
        for rank in range(ranks):
            comm: Any = SimpleNamespace(rank=rank, size=ranks, device="cpu")
            wanted = Replica(comm, replace(PLAIN, batch_size=3)).rows()
            mine = Batches(images, labels, 7, rows=wanted, **options).epoch(2, 1)
            for step, (x, y) in enumerate(mine):
                numbers = wanted(len(whole[step][0]))
                assert len(x) == len(numbers) < len(whole[step][0]) or len(x) == 1
                found[step] |= dict(zip(numbers.tolist(), zip(x, y, strict=True), strict=True))
        for step, (x, y) in enumerate(whole):
            assert sorted(found[step]) == list(range(len(x)))
            for i, (image, label) in found[step].items():
                np.testing.assert_array_equal(image, x[i])
                assert label == y[i]


def test_the_device_is_that_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def pick(device: str) -> str:
        asked.append(device)
        raise ConfigError("stop here")

    monkeypatch.setattr(replica, "pick_device", pick)
    two: Any = SimpleNamespace(size=2, device="cpu")
    for comm, words in (
        (None, "stop here"),
        (Single(), "stop here"),
        (two, "ranks compute on cpu"),
    ):
        with pytest.raises(ConfigError, match=words):
            fit(replace(PLAIN, device="cuda"), comm=comm)
    assert asked == ["cuda", "cuda"]


def test_gradients_travel_in_one_array(xp: ModuleType) -> None:
    """Two ranks of the same gradients: sums are twice as much, and what is not there stays so."""
    params = [nn.Parameter(xp.ones(shape, xp.float32)) for shape in ((3, 5), (), (70,), (2,))]
    for number, parameter in enumerate(params[:3]):
        parameter.grad = xp.full(parameter.shape, number + 1, xp.float32)
    messages: list[int] = []

    def twice(buffer: Any) -> None:
        messages.append(buffer.size)
        buffer *= 2

    message = Message(params, 3, SimpleNamespace(allreduce_sum=twice))  # type: ignore[arg-type]
    for factor in (2, 4):  # the second time the first sums are what is summed
        loss, correct, stop = message.sum(xp.asarray(0.5, xp.float32), xp.asarray(7), True)
        assert (float(loss), int(correct), bool(stop)) == (1.0, 14, True)
        for number, parameter in enumerate(params[:3]):
            assert type(parameter.grad) is xp.ndarray
            assert parameter.grad.shape == parameter.shape
            assert (parameter.grad == factor * (number + 1)).all()
        assert params[3].grad is None
    assert messages == [5 * 64 + 64] * 2
    # float64 is kept
    params[0].data = params[0].data.astype(xp.float64)
    assert Message(params, 1, Single()).buffer.dtype == xp.float64


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_gradient_of_some_ranks_is_summed_on_all(xp: ModuleType, dtype: str) -> None:
    """Of three ranks none, one (each in turn) or all have one; in one message."""
    have = [(), (0,), (1,), (2,), (0, 2), (0, 1, 2)]

    def task(comm: Rank) -> list[Any]:
        params = [nn.Parameter(xp.zeros((2, i), dtype)) for i in range(1, 1 + len(have))]
        message = Message(params, 1, comm)
        for _ in range(2):  # the first sums do not stay
            for parameter, ranks in zip(params, have, strict=True):
                there = comm.rank in ranks
                parameter.grad = xp.full(parameter.shape, 2**comm.rank, dtype) if there else None
            message.sum(0.5)
        assert comm.messages == 2
        return [None if p.grad is None else (p.grad.dtype, p.grad.tolist()) for p in params]

    for found in run_ranks(3, task):
        assert found[0] is None
        for i, ranks in enumerate(have[1:], 2):
            assert found[i - 1] == (dtype, [[sum(2**rank for rank in ranks)] * i] * 2)


class Branches(nn.Module):
    """Takes one of two ways by its images; there is a third one that nobody takes."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.ways = nn.ModuleList(nn.Linear(3, 10, rng=rng) for _ in range(3))

    def forward(self, x: Any) -> Any:
        number = int(np.abs(x.data * 256).sum()) % 2 if self.training else 0
        return self.ways[number](F.mean(x, axis=(2, 3)))


@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.01, "ema": 0.5}, {"accumulate": 2}])
def test_ranks_may_take_different_ways(options: dict[str, Any]) -> None:
    """As one process that takes as many parts as there are ranks and parts on them."""
    config = Config(epochs=3, limit=40, batch_size=8, lr=0.1, device="cpu", **options)
    ways: list[set[bool]] = []

    def note(model: nn.Module, sgd: Any) -> None:
        ways.append({p.grad is not None for p in sgd.params[:4]})
        assert sgd.params[4].grad is None

    def task(comm: Rank) -> dict[str, Any]:
        model = Branches()
        fit(config, model=model, comm=comm, before_update=note)
        return model.state_dict()

    first, second = run_ranks(2, task)
    alone = Branches()
    before = alone.state_dict()
    fit(replace(config, accumulate=2 * config.accumulate), model=alone)
    assert {True} in ways  # both, of which a rank has taken one
    assert {True, False} in ways
    for name, array in alone.state_dict().items():
        np.testing.assert_array_equal(first[name], second[name])
        # 15 steps, each with a few roundings of numbers below 1
        np.testing.assert_allclose(first[name], array, atol=1e-5)
        assert np.array_equal(array, before[name]) == name.startswith("ways.2.")


def test_memory_is_that_of_a_share() -> None:
    config = replace(PLAIN, batch_size=1000, limit=1000)
    needs = estimate(config, build(config))._replace(data=0)
    half = needs.training_peak(config, 2)
    assert needs.program < half < needs.training_peak(config)
    check_memory(config, needs, half, 2)
    with pytest.raises(ConfigError, match=r"batch_size=\d+ fits"):
        check_memory(config, needs, half)
    with pytest.raises(ConfigError, match=r"batch_size=\d+ fits") as caught:
        check_memory(config, needs, half - (1 << 20), 2)
    fits = int(str(caught.value).rpartition("batch_size=")[2].split()[0])
    assert 500 < fits < 1000


def test_alone_everything_is_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a single process agrees with nobody")

    for name in ("agree", "together", "synchronise"):
        monkeypatch.setattr(replica, name, refuse)
    config = Config(batch_size=10, accumulate=3, epochs=1, limit=10, layers=0, device="cpu")
    one = Replica(None, config)
    assert [tuple(part) for part in one.split(10)] == [
        (0, 4, False, True), (4, 8, False, True), (8, 10, False, True),
    ]  # fmt: skip
    array, row = np.ones(3), {"epoch": 1}
    assert one.broadcast(array) is array
    assert one.reduce([], (1.0, 2), True) == (1.0, 2)
    assert one.same(nn.Identity(), row, True, True) == (row, True, False)
    assert one.rows() is None
    assert one.stops(True)
    assert len(fit(config)) == 1
