"""Several ranks are one process: the same training to rounding, and one end for all of them.

Ranks are real processes under ``mpiexec``; :mod:`rank_jobs` is what they run.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import rank_jobs
from rank_jobs import CASES, IMAGES, MISTAKES, PLAIN, STOPPED_AT
from ranks import Rank, run_ranks

from invocupy import checkpoint, nn
from invocupy import functional as F  # noqa: N812
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
    loop,
)
from invocupy.train.replica import Message, parts, rows

MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")
try:
    import mpi4py
except ImportError:
    mpi4py = None  # type: ignore[assignment]
needs_mpi = pytest.mark.skipif(
    mpi4py is None or MPIEXEC is None, reason="needs MPI: pip install 'invocupy[mpi]'"
)
# One rank's end must be all ranks' end within 10 s. The machine may be busy, though.
DEADLINE = 60.0
JOBS = Path(rank_jobs.__file__)
TRAIN = [
    "train", "--layers", "0", "--limit", "60", "--batch-size", "10", "--epochs", "3",
    "--device", "cpu", "--no-plots", "--out", "run",
]  # fmt: skip


def together(
    ranks: int, *arguments: str, cwd: Path, deadline: float = DEADLINE, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``rank_jobs.py`` on several ranks."""
    return subprocess.run(
        [str(MPIEXEC), "-n", str(ranks), sys.executable, str(JOBS), *arguments],
        cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True,
        timeout=deadline,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------- meaning


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The folder of what so many ranks computed, once."""

    @cache
    def compute(ranks: int) -> Path:
        folder = tmp_path_factory.mktemp(f"ranks{ranks}")
        rank_jobs.stop(folder / "resumed", None, 0)
        done = together(ranks, "compute", str(folder), cwd=folder, deadline=280)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == ""
        return folder

    return compute


@pytest.fixture(scope="module")
def alone() -> Callable[[str], Any]:
    """What a single process computes in a case, once."""
    return cache(lambda case: rank_jobs.trained(case, None))


def distance(arrays: dict[str, Any], others: dict[str, Any]) -> float:
    """The norm of the difference of two models, in units of that of the second."""
    pairs = [
        (arrays[name].astype(np.float64), other)
        for name, other in others.items()
        if other.dtype.kind == "f"
    ]
    apart = sum(float(np.square(mine - other).sum()) for mine, other in pairs)
    return float(np.sqrt(apart / sum(float(np.square(other).sum()) for _, other in pairs)))


@needs_mpi
@pytest.mark.parametrize(
    ("case", "ranks"),
    [(name, n) for name, case in CASES.items() for n in case.ranks if name not in MISTAKES],
)
def test_several_ranks_are_one_process(
    computed: Callable[[int], Path], alone: Callable[[str], Any], case: str, ranks: int
) -> None:
    arrays, info = checkpoint.load(computed(ranks) / f"{case}.safetensors")
    expected, history = alone(case)
    assert distance(arrays, expected) <= {"float64": 1e-12, "float32": 1e-6}[CASES[case].dtype]
    counts = [name for name, array in expected.items() if array.dtype.kind == "i"]
    assert counts
    assert all(arrays[name] == expected[name] for name in counts)
    assert len(info["history"]) == len(history) == 5
    for row, other in zip(info["history"], history, strict=True):
        for name in ("epoch", "step", "lr", "train_accuracy", "test_accuracy"):
            assert row[name] == other[name]
        for name in ("train_loss", "test_loss"):
            assert row[name] == pytest.approx(other[name], rel=1e-5)


@needs_mpi
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_would_be_seen(
    computed: Callable[[int], Path], alone: Callable[[str], Any], mistake: str
) -> None:
    """Norms of a rank's own share, and means of means, are far from one process."""
    arrays, _ = checkpoint.load(computed(2) / f"{mistake}.safetensors")
    assert distance(arrays, alone(mistake)[0]) > 1e-4


@needs_mpi
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("count", IMAGES)
def test_evaluation_counts_each_image_once(
    computed: Callable[[int], Path], count: int, ranks: int
) -> None:
    _, info = checkpoint.load(computed(ranks) / "evaluated.safetensors")
    loss, accuracy, confusion = info[str(count)]
    expected = rank_jobs.evaluated(count, None)
    assert [accuracy, confusion] == expected[1:]
    assert sum(map(sum, confusion)) == count
    assert loss == pytest.approx(expected[0], rel=1e-6)


@needs_mpi
def test_a_run_goes_on_with_another_number_of_ranks(
    computed: Callable[[int], Path], alone: Callable[[str], Any], tmp_path: Path
) -> None:
    expected, history = alone("single")
    epoch, step = STOPPED_AT
    stopped, resumed = computed(2) / "stopped", computed(2) / "resumed"
    state = checkpoint.load(stopped / "last.safetensors")[1]["state"]
    assert (state["epoch"], state["step"]) == (epoch - 1, step + 1)
    shutil.copytree(stopped, tmp_path / "one")
    fit(PLAIN, tmp_path / "one", resume=True)
    for folder, ranks in ((tmp_path / "one", 1), (resumed, 2)):
        arrays, info = checkpoint.load(folder / "last.safetensors")
        model = {name.removeprefix("model."): array for name, array in arrays.items()}
        assert distance(model, expected) <= 1e-6
        accuracies = [row["train_accuracy"] for row in info["state"]["history"]]
        assert accuracies == [row["train_accuracy"] for row in history]
        assert json.loads((folder / "machine.json").read_text())["ranks"] == ranks


def test_shares_of_a_batch() -> None:
    """Each row belongs to one rank, or all of them to each where there are too few."""
    for ranks in (1, 2, 3, 5):
        comms = [SimpleNamespace(rank=rank, size=ranks) for rank in range(ranks)]
        for count in range(1, 23):
            for size in (1, 4, 7, count):
                cut = [parts(count, size, comm) for comm in comms]
                wanted = [rows(count, size, comm).tolist() for comm in comms]
                for same in zip(*cut, strict=True):
                    of = sorted(i for part in same for i in range(part.first, part.last))
                    times = ranks if same[0].alone else 1
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
            comm: Any = SimpleNamespace(rank=rank, size=ranks)
            wanted = partial(rows, size=3, comm=comm)
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

    monkeypatch.setattr(loop, "pick_device", pick)
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


# ----------------------------------------------------------------------------------------- faults


@needs_mpi
@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("exception", 1, "[rank 1] ValueError: planted"),
        ("kill", 9, ""),
        ("stall", 75, "[rank 0] invocupy: waited 3 s for the other ranks in "),
        ("full", 1, "[rank 0] invocupy: [Errno 27] File too large"),
    ],
)
def test_the_fault_of_one_rank_ends_all(tmp_path: Path, fault: str, code: int, words: str) -> None:
    timeout = ["--comm-timeout", "3"] if fault == "stall" else []
    done = together(2, "fault", fault, *TRAIN, *timeout, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert ("Traceback" in done.stderr) == (fault == "exception")
    assert done.stdout.count("test accuracy") == 0
    # what was saved before is whole
    state = checkpoint.load(tmp_path / "run" / "last.safetensors")[1]["state"]
    assert (state["epoch"], state["step"]) == (0, 0)


def hanging(folder: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """Ranks that do nothing in their third step, and their process numbers."""
    process = subprocess.Popen(
        [str(MPIEXEC), "-n", "2", sys.executable, str(JOBS), "fault", "hang", *TRAIN],
        cwd=folder, env={**os.environ, "RANK_JOBS": str(folder)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    files = [folder / f"{rank}.pid" for rank in range(2)]
    wait_for(lambda: all(file.exists() for file in files))
    return process, [int(file.read_text()) for file in files]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def gone(pid: int) -> bool:
    """Whether a process is no more, or waits for its parent to hear so."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@needs_mpi
def test_ranks_do_not_outlive_their_launcher(tmp_path: Path) -> None:
    process, ranks = hanging(tmp_path)
    try:
        process.kill()
        wait_for(lambda: all(map(gone, ranks)))
    finally:
        for pid in ranks:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


ORPHAN = """
import os, sys, time
from invocupy.distributed.faults import Watch
if os.fork() == 0:
    Watch(0, 1000.0, print)
    print(os.getpid(), flush=True)
    time.sleep(1000)
sys.stdin.read()
"""


def test_a_rank_ends_when_its_parent_has_died() -> None:
    """As under launchers that leave their processes behind."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", ORPHAN], **pipes)  # type: ignore[call-overload]
    rank = int(process.stdout.readline())
    try:
        time.sleep(0.5)
        assert not gone(rank)
        process.kill()
        process.wait()
        wait_for(lambda: gone(rank))
    finally:
        with suppress(ProcessLookupError):
            os.kill(rank, signal.SIGKILL)
        process.communicate()


@needs_mpi
def test_ctrl_c_stops_all_after_the_same_step(tmp_path: Path) -> None:
    """What the launcher hands on, even twice; the run can be resumed."""
    process = subprocess.Popen(
        [
            str(MPIEXEC), "-n", "2", sys.executable, "-m", "invocupy", *TRAIN,
            "--epochs", "100000",
        ],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130, err
    assert err.count("invocupy: interrupted in epoch") == 1
    state = checkpoint.load(tmp_path / "run" / "last.safetensors")[1]["state"]
    assert state["epoch"] * 6 + state["step"] == int(err.rpartition("after step ")[2].split()[0])


@needs_mpi
def test_errors_that_all_ranks_make_are_said_once(tmp_path: Path) -> None:
    command = [str(MPIEXEC), "-n", "2", sys.executable, "-m", "invocupy"]
    for arguments, code, words in (
        ([*TRAIN, "--lr", "1e30", "--schedule", "constant"], 70, "training loss is"),
        ([*TRAIN, "--seed", "-1"], 2, "seed must be at least 0"),
        ([*TRAIN, "--resume", "nowhere"], 2, "exclude each other"),
        (["train", "--resume", "nowhere"], 65, "nowhere/last.safetensors cannot be read"),
    ):
        done = subprocess.run(
            [*command, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE
        )
        assert done.returncode == code, done.stderr
        assert done.stderr.count(words) == 1, done.stderr


@needs_mpi
def test_settings_that_differ_are_refused(tmp_path: Path) -> None:
    one = ["-n", "1", sys.executable, "-m", "invocupy", *TRAIN]
    command = [str(MPIEXEC), *one, "--lr", "0.1", ":", *one, "--lr", "0.2"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("lr differs between ranks: 0.1 on rank 0, 0.2 on rank 1") == 1
    assert not (tmp_path / "run").exists()
