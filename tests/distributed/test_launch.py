"""Who started a rank, its cores and its GPU; NCCL by its calls, and on a GPU where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from invocupy.arrays import require_cupy
from invocupy.backends.cpu import threads
from invocupy.cli import main
from invocupy.distributed import (
    LaunchError,
    Single,
    environment,
    is_root,
    join,
    launched,
    mpi,
    nccl,
)

# -------------------------------------------------------------------------------------- launchers


def test_a_launcher_of_another_mpi_is_refused(tmp_path: Path) -> None:
    """Each process would take itself for the only one, and write over the others' files."""
    pytest.importorskip("mpi4py", reason="needs MPI: pip install 'invocupy[mpi]'")
    other = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}
    done = subprocess.run(
        [sys.executable, "-m", "invocupy", "train", "--out", "run"],
        cwd=tmp_path, env={**os.environ, **other}, capture_output=True, text=True, timeout=60,
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
    assert is_root() == (expected is None or expected[0] == 0)


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
    comm = SimpleNamespace(local_size=len(cores), exchange=lambda mine, locally: cores)
    try:
        join._share_cores(comm)  # type: ignore[arg-type]
        assert threads._wanted == expected
        threads.set_num_threads(None)
        monkeypatch.setenv("INVOCUPY_NUM_THREADS", "7")
        join._share_cores(comm)  # type: ignore[arg-type]
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
    monkeypatch.setattr(join, "NCCL", lambda comm, number: made.append(number) or comm)

    def take(device: str, seen: int, local_rank: int, all_see: bool = True) -> Any:
        def count() -> Any:
            if not seen:
                raise RuntimeError("CuPy finds none")
            runtime = SimpleNamespace(getDeviceCount=lambda: seen)
            return SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))

        monkeypatch.setattr(join, "require_cupy", count)
        comm = object.__new__(mpi.MPI)
        comm.rank, comm.size, comm.local_rank, comm.local_size = local_rank, 4, local_rank, 4
        comm.exchange = lambda value: [value, seen if all_see else 0]  # type: ignore[method-assign]
        join.with_gpus(comm, device)
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
