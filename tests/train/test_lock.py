"""One run at a time writes into a folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from invocupy.train import Config, ConfigError, Progress, fit, load_run
from invocupy.train.lock import NAME, locked

# no involution: nothing to compile
TINY = Config(layers=0, epochs=2, batch_size=10, limit=20, device="cpu")
FILES = {"config.json", "machine.json", "metrics.jsonl", "last.safetensors", "best.safetensors"}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---------------------------------------------------------------------------------- one writer


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_in_the_folder_is_told(tmp_path: Path, resume: bool) -> None:
    if resume:
        fit(replace(TINY, epochs=1), tmp_path)
    seen = []

    def second(now: Progress) -> None:
        if now.step == 1 and not seen:
            with pytest.raises(ConfigError) as caught:
                fit(replace(TINY, epochs=3), tmp_path, resume=True)
            seen.append(str(caught.value))
            assert len(load_run(tmp_path, "last")[2]) == resume  # who reads need not wait

    assert len(fit(TINY, tmp_path, resume=resume, progress=second)) == 2
    assert f"in use by process {os.getpid()} on " in seen[0]
    assert names(tmp_path) == FILES


@pytest.mark.parametrize("end", [RuntimeError, KeyboardInterrupt])
def test_the_lock_ends_with_the_run(tmp_path: Path, end: type[BaseException]) -> None:
    def fail(_: Progress) -> None:
        raise end

    with pytest.raises(end):
        fit(TINY, tmp_path, progress=fail)
    assert NAME not in names(tmp_path)
    assert len(fit(TINY, tmp_path, resume=True)) == 2


HOLDER = """
import os, subprocess, sys, time
from pathlib import Path
from invocupy.train.lock import locked
with locked(Path(sys.argv[1])):
    if sys.argv[2] == "fork":
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.write(writer, b"begun")
            time.sleep(60)
        os.read(reader, 5)
    child = subprocess.Popen(["sleep", "60"]) if sys.argv[2] == "exec" else None
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("child", ["none", "fork", "exec"])
def test_the_lock_ends_with_its_process(tmp_path: Path, child: str) -> None:
    """However it ends, and whatever it has started lives on."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), child],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    ) as holder:  # fmt: skip
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(ConfigError, match=f"process {holder.pid} on"), locked(tmp_path):
                pass
            holder.kill()
            holder.wait()
            with locked(tmp_path):
                assert names(tmp_path) == {NAME}
        finally:
            with suppress(ProcessLookupError):
                os.killpg(holder.pid, signal.SIGKILL)
    assert not names(tmp_path)


def test_of_many_at_once_one_has_the_lock(tmp_path: Path) -> None:
    """Also while the file is removed and made again all the time."""
    inside, most, turns = [0], [0], [0]
    guard = threading.Lock()

    def work() -> None:
        end = time.monotonic() + 1
        while time.monotonic() < end:
            try:
                with locked(tmp_path):
                    with guard:
                        inside[0] += 1
                        most[0] = max(most[0], inside[0])
                        turns[0] += 1
                    time.sleep(0)
                    with guard:
                        inside[0] -= 1
            except ConfigError:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert turns[0] > 10
    assert not names(tmp_path)


@pytest.mark.parametrize("number", [38, 95, 22, 37, None])  # ENOSYS, ENOTSUP, EINVAL, ENOLCK
def test_without_locks_runs_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    from invocupy.train import lock

    class Without:
        LOCK_EX = LOCK_NB = 0

        @staticmethod
        def flock(*_: Any) -> None:
            raise OSError(number, "not here")

    monkeypatch.setattr(lock, "fcntl", None if number is None else Without)
    assert len(fit(TINY, tmp_path)) == 2
    assert names(tmp_path) == FILES


# ------------------------------------------------------------------------------- damaged content


def test_the_lock_is_not_taken_through_a_link(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / NAME).symlink_to(mine)
    with pytest.raises(OSError, match=NAME):
        fit(TINY, tmp_path / "run")
    assert mine.read_text() == "mine"
