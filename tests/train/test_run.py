"""The run's folder: what a killed process leaves, how signals end a run, damaged files."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from invocupy import checkpoint
from invocupy.checkpoint import CheckpointError
from invocupy.data import DataError
from invocupy.train import Config, ConfigError, Interrupted, Progress, fit, load_run, open_run, sets
from invocupy.train.lock import NAME

# no involution: nothing to compile
TINY = Config(layers=0, epochs=2, batch_size=10, limit=20, device="cpu")
FILES = {"config.json", "machine.json", "metrics.jsonl", "last.safetensors", "best.safetensors"}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


KILLER = """
import itertools, os, signal, sys
from dataclasses import replace
from pathlib import Path
from invocupy.train import Config, ConfigError, fit, load_run

place = Path(sys.argv[1])
config = Config(layers=0, epochs=2, batch_size=10, limit=10, device="cpu")
fit(config, place / "whole")
rows = [r["test_accuracy"] for r in load_run(place / "whole", "last")[2]]
real, begun, resumed = os.fsync, 0, 0

def killed(count, folder, resume):
    '''Whether a child was killed before its operation of that number on the run's files.'''
    if pid := os.fork():
        return os.waitpid(pid, 0)[1] == signal.SIGKILL
    left = itertools.count(count, -1)

    def step():
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(event, arguments):
        operations = "open", "os.rename", "os.remove", "os.mkdir"
        if event in operations and str(folder) in str(arguments):
            step()

    def fsync(descriptor):
        step()
        real(descriptor)
        step()

    sys.addaudithook(watch)
    os.fsync = fsync
    fit(config, folder, resume=resume)
    os._exit(0)

for resume in (False, True):
    for count in itertools.count(*map(int, sys.argv[2:])):
        folder = place / f"run-{resume}-{count}"
        if resume:
            fit(replace(config, epochs=1), folder)
        if not killed(count, folder, resume):
            break
        try:
            done = len(load_run(folder, "last")[2]) if resume else 0
            history = fit(config, folder, resume=resume)
            begun += 1
        except ConfigError as error:
            assert "resume it" in str(error), error
            done = len(load_run(folder, "last")[2])
            history = fit(config, folder, resume=True)
            resumed += 1
        assert [r["test_accuracy"] for r in history] == rows
        assert {p.name for p in folder.iterdir()} == {p.name for p in (place / "whole").iterdir()}
        for name in ("metrics.jsonl", "config.json"):
            assert len((folder / name).read_text().splitlines()) == len(
                (place / "whole" / name).read_text().splitlines())
print(begun, resumed)
"""

# ---------------------------------------------------------------------------- killed at any point


@pytest.mark.parametrize("first", range(7 if os.environ.get("ALL_TESTS") else 1))
def test_killed_before_any_operation_on_its_files_a_run_begins_or_goes_on(
    tmp_path: Path, first: int
) -> None:
    """Every seventh operation, which meets each kind of them; with ALL_TESTS=1 every one."""
    command = [sys.executable, "-c", KILLER, str(tmp_path), str(first), "7"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    begun, resumed = map(int, done.stdout.split())
    assert begun > 5
    assert resumed > 2


@pytest.mark.parametrize("config", ["", TINY.to_json()])
def test_what_older_versions_left_before_their_first_checkpoint(
    tmp_path: Path, config: str
) -> None:
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "metrics.jsonl").touch()
    assert len(fit(TINY, tmp_path)) == 2
    assert names(tmp_path) == FILES


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_file_of_the_users_is_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"architecture": "of another program"}')
    with pytest.raises(ConfigError, match=f"holds a run already .*{name}"):
        fit(TINY, tmp_path)
    assert names(tmp_path) == {name}
    assert "of another program" in (tmp_path / name).read_text()


def test_a_run_that_cannot_begin_leaves_the_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpoint.write_atomically
    for failing in ("last.safetensors", "config.json", "machine.json", "metrics.jsonl"):

        def write(path: Any, content: bytes, failing: str = failing) -> None:
            if Path(path).name == failing:
                raise OSError(28, "No space left on device")
            real(path, content)

        monkeypatch.setattr(checkpoint, "write_atomically", write)
        with pytest.raises(OSError, match="No space"):
            fit(TINY, tmp_path)
        monkeypatch.undo()
        assert NAME not in names(tmp_path)
    assert len(fit(TINY, tmp_path)) == 2


def test_settings_are_compared_before_data_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(TINY, tmp_path)

    def download(*_: Any) -> Any:
        raise DataError("a download was tried")

    monkeypatch.setattr(sets, "load_data", download)
    with pytest.raises(ConfigError, match=r"lr is 0\.01 there, not 0\.5"):
        fit(replace(TINY, lr=0.5), tmp_path, resume=True)
    with pytest.raises(ConfigError, match="holds a run already"):
        fit(TINY, tmp_path)
    with pytest.raises(CheckpointError, match="is not a folder"):
        fit(TINY, tmp_path / "none", resume=True)
    with pytest.raises(DataError):
        fit(TINY, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    fit(replace(TINY, epochs=1), "~/run")
    fit(TINY, "~/run", resume=True)
    assert len(load_run("~/run", "last")[2]) == 2
    assert names(tmp_path) == {"run"}


# ---------------------------------------------------------------------------------- one writer


def test_what_others_write_into_the_folder_is_not_swept(tmp_path: Path) -> None:
    fit(TINY, tmp_path)
    others = {
        ".report.html.0123456789abcdef.tmp", ".last.safetensors.tmp", "notes.tmp",
        ".last.safetensors.0123456789ABCDEF.tmp", ".my-last.safetensors.0123456789abcdef.tmp",
    }  # fmt: skip
    for name in others:
        (tmp_path / name).touch()
    fit(TINY, tmp_path, resume=True)
    assert names(tmp_path) == FILES | others


# ------------------------------------------------------------------------------------- signals


def at_step(act: Any) -> Any:
    def progress(now: Progress) -> None:
        if now.row is None and now.step == 1:
            act()

    return progress


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_first(tmp_path: Path, number: signal.Signals) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]

    def ask() -> None:
        signal.raise_signal(number)
        if number != signal.SIGINT:  # a launcher may hand it on once more
            signal.raise_signal(number)

    with pytest.raises(Interrupted, match="after step 1") as caught:
        fit(TINY, tmp_path, progress=at_step(ask))
    assert caught.value.signal == number
    assert checkpoint.load(tmp_path / "last.safetensors")[1]["state"]["step"] == 1
    assert before == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert len(fit(TINY, tmp_path, resume=True)) == 2


def test_ctrl_c_after_another_signal_ends_at_once(tmp_path: Path) -> None:
    def ask() -> None:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        fit(TINY, tmp_path, progress=at_step(ask))
    assert not isinstance(caught.value, Interrupted)


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None])
def test_a_handler_of_the_callers_stays(handler: Any) -> None:
    before = signal.signal(signal.SIGTERM, handler)
    try:
        history = fit(TINY, progress=at_step(lambda: signal.raise_signal(signal.SIGTERM)))
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(history) == 2


# ------------------------------------------------------------------------------- damaged content


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": -1}, {"epoch": "two"}, {"epoch": 2.0}, {"epoch": 10**30}, {"epoch": True},
        {"step": None}, {"images": 1.5}, {"correct": []}, {"loss": "x"}, {"seconds": None},
        {"history": {}}, {"history": [1, 2]}, {"history": [{}, {}]}, {"history": []},
        {"history": [{"test_accuracy": "high"}] * 2}, {"more": 1},
    ],
)  # fmt: skip
def test_a_state_that_is_none_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    fit(TINY, tmp_path)
    path = tmp_path / "last.safetensors"
    arrays, info = checkpoint.load(path)
    checkpoint.save(path, arrays, {**info, "state": {**info["state"], **change}})
    for read in (lambda: load_run(tmp_path, "last"), lambda: fit(TINY, tmp_path, resume=True)):
        with pytest.raises(CheckpointError, match="not a run of this version"):
            read()


@pytest.mark.parametrize("info", [[], {"config": [], "state": {}}, {"config": {}, "state": None}])
def test_json_of_another_shape_is_refused(tmp_path: Path, info: Any) -> None:
    checkpoint.save(tmp_path / "last.safetensors", {}, info)
    with pytest.raises(CheckpointError, match=r"not a run of this version|lacks the JSON"):
        load_run(tmp_path, "last")


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "last.safetensors")
    with pytest.raises(CheckpointError, match="a pipe or a device"):
        load_run(tmp_path, "last")
    with pytest.raises(CheckpointError, match="is not a folder"):
        load_run("n" * 300, "last")


@pytest.mark.parametrize("content", [b'{"epoch": 1, "st', b"\xff\xfe", b"", None])
def test_damaged_metrics_are_written_anew(tmp_path: Path, content: bytes | None) -> None:
    """As a kill within a line leaves them on file systems that keep no order."""
    fit(replace(TINY, epochs=1), tmp_path)
    for name in ("metrics.jsonl", "config.json", "machine.json"):
        if content is None:
            (tmp_path / name).unlink()
        else:
            (tmp_path / name).write_bytes(content)
    history = fit(TINY, tmp_path, resume=True)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history
    assert Config.from_json((tmp_path / "config.json").read_text()) == TINY


def test_numbers_of_hooks_are_strict_json(tmp_path: Path) -> None:
    import numpy as np

    def add(_: Any, row: dict[str, Any]) -> None:
        row.update(nan=float("nan"), rates=(np.float32(0.5), np.inf), count=np.int64(3), name="a")

    history = fit(replace(TINY, epochs=1), tmp_path, after_epoch=add)
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    row = json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert row == history[0] == load_run(tmp_path, "last")[2][0]
    assert (row["nan"], row["rates"], row["count"], row["name"]) == (None, [0.5, None], 3, "a")


def test_a_notebook_shows_the_history(tmp_path: Path) -> None:
    fit(TINY, tmp_path)
    html = open_run(tmp_path)._repr_html_()
    assert re.findall(r"<th>(\w+)</th>", html)[:3] == ["epoch", "step", "train_loss"]
    assert re.findall(r"<tr><td>(\d+)</td><td>(\d+)</td>", html) == [("1", "2"), ("2", "4")]
