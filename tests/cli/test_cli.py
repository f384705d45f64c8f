"""The command line as its users meet it: exit codes, one line for what went wrong, streams."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pooch  # noqa: F401  (its logger keeps the standard error of its first import)
import pytest
from command import TRAIN, fails, start

from invocupy import checkpoint, data
from invocupy import train as training
from invocupy.cli import main

pytestmark = pytest.mark.usefixtures("own_folder")

# -------------------------------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    "arguments",
    [[], ["dance"], ["train", "--colour", "red"], ["train", "--layers", "two"], ["evaluate"]],
)
def test_2_for_what_the_parser_refuses(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "usage: " in err


def test_2_for_settings_that_make_no_sense(capsys: pytest.CaptureFixture[str]) -> None:
    assert "one of simple" in fails(capsys, 2, "train", "--model", "vgg")
    assert "shapes10, cifar10" in fails(capsys, 2, "train", "--dataset", "mnist")
    assert "lr must be" in fails(capsys, 2, "train", "--lr", "-1")
    assert not list(Path().iterdir())


def test_2_for_a_folder_that_holds_a_run(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds a run already" in fails(capsys, 2, *TRAIN, "--out", trained)


def test_2_for_a_file_in_place_of_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").touch()
    assert "out file is a file: give a folder" in fails(capsys, 2, *TRAIN, "--out", "file")


def test_2_for_no_class_to_show(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    error = fails(capsys, 2, "predict", trained, "image.png", "--top", "0")
    assert "--top must be at least 1, got 0" in error


def test_65_for_bad_data(capsys: pytest.CaptureFixture[str]) -> None:
    Path("d").mkdir()
    cifar = ["train", "--dataset", "cifar10", "--data-dir", "d"]
    assert "has no CIFAR-10" in fails(capsys, 65, *cifar)
    for name in (*data.cifar.TEN.train, *data.cifar.TEN.test):
        Path("d", name).write_bytes(b"\0" * 3073)
    assert "must have 30730000 bytes" in fails(capsys, 65, *cifar)
    assert not Path("runs").exists()


def test_65_for_bad_checkpoints(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "none is not a folder" in fails(capsys, 65, "evaluate", "none")
    assert "none is not a folder" in fails(capsys, 65, "train", "--resume", "none")
    content = Path(trained, "best.safetensors").read_bytes()
    Path("run").mkdir()
    for damaged in (
        b"",
        content[:-1],
        content[:100],
        content[:-9] + bytes([content[-9] ^ 4]) + content[-8:],
    ):
        for which in ("best", "last"):
            Path("run", f"{which}.safetensors").write_bytes(damaged)
        fails(capsys, 65, "evaluate", "run")
        fails(capsys, 65, "train", "--resume", "run")


def test_69_for_a_download_that_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INVOCUPY_DATA", "empty")
    ten = data.cifar.TEN._replace(url="http://127.0.0.1:9/cifar-10-binary.tar.gz")
    monkeypatch.setattr(data.cifar, "TEN", ten)
    monkeypatch.setattr(data.cifar, "_RETRIES", 0)
    error = fails(capsys, 69, "train", "--dataset", "cifar10")
    assert "shapes10, which needs no network" in error


def test_70_for_numbers_that_go_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRAIN, "--lr", "1e30", "--schedule", "constant", "--out", "a"]) == 70
    out, err = capsys.readouterr()
    assert out == ""
    error = err.splitlines()[-1]  # the first one is that of the beginning
    assert re.search(r"training loss is (nan|inf) in epoch 1, step 2 .*lower lr", error)
    arrays, info = checkpoint.load("a/last.safetensors")
    assert info["state"]["step"] == 0
    assert all(np.isfinite(array).all() for array in arrays.values())


def test_1_for_what_the_system_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").touch()
    assert "file" in fails(capsys, 1, *TRAIN, "--out", "file/run")


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_closed_stream_takes_everything(trained: str, closed: str) -> None:
    descriptor = {"stdout": 1, "stderr": 2}[closed]
    for command in (["evaluate", trained], ["evaluate", "nowhere"]):
        close = ["sh", "-c", f'exec "$@" {descriptor}>&-', "sh"]
        process = subprocess.run(
            [*close, sys.executable, "-m", "invocupy", *command], capture_output=True, text=True
        )
        assert process.returncode == (65 if "nowhere" in command else 0)
        assert "Traceback" not in process.stderr
        assert ("test accuracy" in process.stdout) == (command[1] == trained and closed != "stdout")


def test_a_name_that_the_encoding_lacks_is_escaped(trained: str) -> None:
    Path("ü").symlink_to(trained)
    with start("plot", "ü", env={**os.environ, "PYTHONIOENCODING": "ascii"}) as process:
        out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert r"\xfc/curves.png" in out


def test_mistakes_of_the_program_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise AssertionError("a mistake")

    monkeypatch.setattr(training, "fit", broken)
    with pytest.raises(AssertionError, match="a mistake"):
        main(TRAIN)


# ------------------------------------------------------------------- the program as its own process


def test_help_is_light() -> None:
    code = "import sys, invocupy.cli as c; c._parser(); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"numba", "cupy", "tqdm", "pooch", "safetensors", "invocupy.train", "invocupy.nn"}
    assert not heavy & {*loaded.stdout.split()}


def test_a_reader_that_leaves_early_is_no_error() -> None:
    """As ``| head`` does: here it is gone before the first line."""
    process = start("summary", "--layers", "0", "--device", "cpu")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait(60) == 128 + signal.SIGPIPE
