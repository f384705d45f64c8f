"""A fault of one rank ends all of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from rank_processes import DEADLINE, JOBS, MPIEXEC, needs_mpi, together

from invocupy import checkpoint

TRAIN = [
    "train", "--layers", "0", "--limit", "60", "--batch-size", "10", "--epochs", "3",
    "--device", "cpu", "--no-plots", "--out", "run",
]  # fmt: skip

# ----------------------------------------------------------------------------------------- faults


@needs_mpi
@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("exception", 1, "[rank 1] ValueError: planted"),
        ("kill", 9, ""),
        ("stall", 75, "[rank 0] invocupy: waited 3 s for the other ranks in "),
        ("full", 1, "[rank 0] invocupy: run/best.safetensors: File too large"),
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
    (step,) = re.findall(r"after step (\d+)", err)
    assert state["epoch"] * 6 + state["step"] == int(step)


@needs_mpi
def test_errors_that_all_ranks_make_are_said_once(tmp_path: Path) -> None:
    command = [str(MPIEXEC), "-n", "2", sys.executable, "-m", "invocupy"]
    for arguments, code, words in (
        ([*TRAIN, "--lr", "1e30", "--schedule", "constant"], 70, "training loss is"),
        ([*TRAIN, "--seed", "-1"], 2, "seed must be at least 0"),
        ([*TRAIN, "--resume", "nowhere"], 2, "not both"),
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
