"""Several ranks are one process: the same training to rounding, and one end for all of them.

Ranks are real processes under ``mpiexec`` (:mod:`rank_jobs` is what they run); NCCL is checked by
its calls, and on a GPU where there is one.
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
import pytest
import rank_jobs
from rank_jobs import CASES, IMAGES, MISTAKES, PLAIN, STOPPED_AT

from invocupy import checkpoint
from invocupy.arrays import require_cupy
from invocupy.backends import threads
from invocupy.cli import main
from invocupy.data import Batches
from invocupy.distributed import (
    LaunchError,
    Single,
    environment,
    launch,
    launched,
    mpi,
    nccl,
    speaks,
)
from invocupy.train import ConfigError, augmentation, build, check_memory, estimate, fit, load_data
from invocupy.train.parallel import parts, rows

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
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
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
    command = [str(MPIEXEC), "-n", "2", sys.executable, "-m", "invocupy", *TRAIN]
    for more, code, words in (
        (["--lr", "1e30", "--schedule", "constant"], 70, "training loss is"),
        (["--seed", "-1"], 2, "seed must be at least 0"),
        (["--resume", "nowhere"], 2, "exclude each other"),
    ):
        done = subprocess.run(
            [*command, *more], cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE
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


# -------------------------------------------------------------------------------------- launchers


@needs_mpi
def test_a_launcher_of_another_mpi_is_refused(tmp_path: Path) -> None:
    """Each process would take itself for the only one, and write over the others' files."""
    environment = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}
    done = subprocess.run(
        [sys.executable, "-m", "invocupy", *TRAIN], cwd=tmp_path, env={**os.environ, **environment},
        capture_output=True, text=True, timeout=DEADLINE,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "the launcher started 2 processes, but MPI knows of 1" in done.stderr
    assert not (tmp_path / "run").exists()


def test_without_mpi_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert main(["train"]) == 69
    assert "pip install 'invocupy[mpi]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None),
        ({"PMI_RANK": "1", "PMI_SIZE": "4"}, (1, 4)),
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3"}, (2, 3)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, None),  # a batch script, not a step
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8"}, (5, 8)),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "PMI_RANK": "3", "PMI_SIZE": "4"},
         (3, 4)),
        ({"PMIX_RANK": "1"}, (1, 0)),
    ],
)  # fmt: skip
def test_launchers_are_known_by_their_environment(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: Any
) -> None:
    for names in environment._LAUNCHERS:
        for name in names:
            if name:
                monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert launched() == expected
    assert speaks() == (expected is None or expected[0] == 0)


@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        ([[0, 1, 2, 3], [0, 1, 2, 3]], 2),
        ([[0, 1, 2, 3]] * 3, 1),
        ([[0], [0]], 1),
        ([[0, 1], [2, 3]], None),  # the launcher has given each its own
        ([[0, 1, 2], [0, 1, 2], [4, 5, 6], [4, 5, 6]], 1),
    ],
)
def test_ranks_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: list[list[int]], expected: int | None
) -> None:
    monkeypatch.delenv("INVOCUPY_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(cores[0]))
    comm = SimpleNamespace(local_size=len(cores), exchange_locally=lambda mine: cores)
    try:
        launch._share_cores(comm)  # type: ignore[arg-type]
        assert threads._wanted == expected
        threads.set_num_threads(None)
        monkeypatch.setenv("INVOCUPY_NUM_THREADS", "7")
        launch._share_cores(comm)  # type: ignore[arg-type]
        assert threads._wanted is None
    finally:
        threads.set_num_threads(None)


# ------------------------------------------------------------------------------------------- NCCL


class FakeArray(np.ndarray):
    """An array with CuPy's attribute for the address."""

    @property
    def data(self) -> Any:  # type: ignore[override]
        return SimpleNamespace(ptr=self.ctypes.data)


def control(size: int = 1) -> Any:
    """What NCCL needs of MPI, for a single process."""
    watch = SimpleNamespace(clocks=[], wait=lambda what, call, *given: call(*given))
    return SimpleNamespace(
        rank=0, size=size, local_rank=0, local_size=size, watch=watch, exchange=lambda v: [v] * size
    )


def test_calls_of_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses, counts, dtypes, operation and stream, on a library that only writes them down."""
    calls: list[Any] = []

    class Communicator:
        def __init__(self, size: int, name: bytes, rank: int) -> None:
            calls.append(("join", size, name, rank))

        def __getattr__(self, name: str) -> Any:
            return lambda *given: calls.append((name, *given))

    marks = [SimpleNamespace(done=False, record=lambda: None) for _ in range(2)]
    left = iter(marks)
    library = SimpleNamespace(
        available=True, NcclCommunicator=Communicator, NcclError=RuntimeError, NCCL_SUM=0,
        NCCL_UINT8=1, NCCL_FLOAT32=7, NCCL_FLOAT64=8, NCCL_INT64=4,
        get_unique_id=lambda: bytes(range(128)),
    )  # fmt: skip
    cuda = ModuleType("cupy.cuda")
    vars(cuda).update(
        nccl=library, Device=lambda number: SimpleNamespace(use=lambda: calls.append(number)),
        get_current_stream=lambda: SimpleNamespace(ptr=77),
        Event=lambda disable_timing: next(left),
    )  # fmt: skip
    cupy = ModuleType("cupy")
    vars(cupy).update(
        cuda=cuda, ndarray=FakeArray, ascontiguousarray=np.asanyarray,
        empty=lambda shape, dtype: np.empty(shape, dtype).view(FakeArray),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cupy.cuda", cuda)

    ranks = control(2)
    comm = nccl.NCCL(ranks, 3)
    assert (comm.rank, comm.size, comm.local_rank, comm.device) == (0, 2, 0, "cuda:3")
    assert calls == [3, ("join", 2, bytes(range(128)), 0)]
    calls.clear()

    def of(shape: Any, dtype: str) -> Any:
        return np.zeros(shape, dtype).view(FakeArray)

    x = of((2, 3), "float16")
    gathered = comm.allgather(x)
    assert (gathered.shape, gathered.dtype) == ((2, 2, 3), np.float16)
    assert calls.pop() == ("allGather", x.data.ptr, gathered.data.ptr, 12, 1, 77)
    for dtype, number in (("float32", 7), ("int64", 4)):
        x = of(10, dtype)
        comm.allreduce_sum(x)
        assert calls.pop() == ("allReduce", x.data.ptr, x.data.ptr, 10, number, 0, 77)
    x = of((), "float64")
    comm.broadcast(x, 1)
    assert calls.pop() == ("broadcast", x.data.ptr, x.data.ptr, 8, 1, 1, 77)
    for method in (comm.allreduce_sum, comm.broadcast):
        with pytest.raises(ValueError, match="C-contiguous"):
            method(of((4, 4), "float32")[:, ::2])

    (clock,) = ranks.watch.clocks  # the oldest mark that the GPU has not passed
    assert clock()[0] is marks[0]
    marks[0].done = True
    assert clock()[0] is marks[1]
    marks[1].done = True
    assert clock() is None
    assert ("check_async_error",) in calls


def test_without_nccl_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = ModuleType("cupy.cuda")
    vars(cuda)["nccl"] = SimpleNamespace(available=False)
    monkeypatch.setitem(sys.modules, "cupy", ModuleType("cupy"))
    monkeypatch.setitem(sys.modules, "cupy.cuda", cuda)
    with pytest.raises(RuntimeError, match="pip install nvidia-nccl-cu13"):
        nccl.NCCL(control(), 0)


def test_which_gpu_a_rank_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(launch, "NCCL", lambda comm, number: made.append(number) or comm)

    def take(device: str, seen: int, local_rank: int, all_see: bool = True) -> Any:
        def count() -> Any:
            if not seen:
                raise RuntimeError("CuPy finds none")
            runtime = SimpleNamespace(getDeviceCount=lambda: seen)
            return SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))

        monkeypatch.setattr(launch, "require_cupy", count)
        comm = object.__new__(mpi.MPI)
        comm.rank, comm.size, comm.local_rank, comm.local_size = local_rank, 4, local_rank, 4
        comm.exchange = lambda value: [value, seen if all_see else 0]  # type: ignore[method-assign]
        launch.with_gpus(comm, device)
        return made.pop() if made else None

    assert take("cuda", 4, 2) == 2
    assert take("auto", 8, 3) == 3
    assert take("cuda", 1, 3) == 0  # the launcher shows each rank its own
    assert take("auto", 4, 1, all_see=False) is None
    assert take("auto", 0, 1) is None
    assert take("cpu", 4, 1) is None
    for device, seen, words in (
        ("cuda", 0, "device is cuda, but CuPy finds none"),
        ("cuda", 2, "4 ranks share 2 GPUs"),
        ("cuda:1", 4, "device must be auto, cpu or cuda with several ranks"),
    ):
        with pytest.raises(LaunchError, match=words):
            take(device, seen, 3)


@pytest.mark.gpu
def test_nccl_of_one_rank() -> None:
    cupy = require_cupy()
    comm = nccl.NCCL(control(), 0)
    x = cupy.arange(6.0, dtype=cupy.float32).reshape(2, 3)
    gathered = comm.allgather(x)
    assert gathered.shape == (1, 2, 3)
    for dtype in ("float32", "float64", "int64"):
        buffer = cupy.arange(1000).astype(dtype)
        comm.allreduce_sum(buffer)
        assert (buffer == cupy.arange(1000)).all()
    comm.broadcast(x)
    assert (gathered[0] == x).all()
    assert comm._behind() is None or comm._marks


def test_one_process_is_a_rank_of_one() -> None:
    comm = Single()
    x = np.arange(3.0)
    comm.allreduce_sum(x)
    comm.broadcast(x)
    assert x.tolist() == [0, 1, 2]
    gathered = comm.allgather(x)
    assert gathered.tolist() == [[0, 1, 2]]
    assert not np.shares_memory(gathered, x)
