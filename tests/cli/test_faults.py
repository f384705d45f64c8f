"""The command line where paths, streams, files and the environment are not as they should be."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from invocupy import checkpoint
from invocupy import train as training
from invocupy.cli import main
from invocupy.train import Config, fit, load_run, read_settings

# no involution: nothing to compile; device: so that a GPU changes nothing
TINY = ["--layers", "0", "--limit", "20", "--batch-size", "10", "--epochs", "1", "--device", "cpu"]
TRAIN = ["train", *TINY, "--no-plots"]


pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    fit(Config(layers=0, limit=20, batch_size=10, epochs=1, device="cpu"), folder)
    return str(folder)


@pytest.fixture
def run(trained: str) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(trained, "copy"))


def one_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code, which is not 0, and the one line of the error or the parser's usage."""
    try:
        code = main(arguments)
    except SystemExit as end:
        code = int(str(end.code))
    err = capsys.readouterr().err
    last = err.splitlines()[-1]
    assert code, arguments
    assert "Traceback" not in err
    assert "usage:" in err or re.fullmatch(r"invocupy: [^\n]+\n", err), err
    return code, last


# ------------------------------------------------------------------------------------- paths

ABSURD = ["", "\0", "n" * 300, "a/" * 3000, "file", "file/x", "none", "broken", "loop", "loop/x"]


@pytest.mark.parametrize("path", ABSURD)
def test_absurd_paths(path: str, trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").touch()
    Path("broken").symlink_to("nowhere/at/all")
    Path("loop").symlink_to("loop")
    before = {*Path().iterdir()}
    for command in ("evaluate", "plot", "report"):
        assert one_line(capsys, command, path)[0] in (2, 65)
    assert one_line(capsys, "train", "--resume", path)[0] in (2, 65)
    if path != "file":
        assert one_line(capsys, "train", "--config", path)[0] == 2
        if path != "none":
            assert one_line(capsys, *TRAIN, "--out", path)[0] in (1, 2)
        out = "none/page.html" if path == "none" else path
        if path != "n" * 300:
            assert one_line(capsys, "report", trained, "--out", out)[0] in (1, 2)
    assert before == {*Path().iterdir()}


def test_the_home_folder_in_every_flag(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (home / "s.toml").write_text('schedule = "cosine"\n')
    assert main([*TRAIN, "--out=~/run", "--config=~/s.toml"]) == 0
    assert main(["train", "--resume=~/run", "--epochs", "2", "--no-plots"]) == 0
    assert load_run(home / "run", "last")[0].schedule == "cosine"
    assert main(["evaluate", "~/run"]) == 0
    assert main(["report", "~/run", "--out=~/page.html"]) == 0
    capsys.readouterr()
    assert main(["plot", "~/run", "--json"]) == 0
    assert str(home) in capsys.readouterr().out
    left = {path.name for path in home.iterdir()} - {".cache", ".config"}  # matplotlib's
    assert left == {"run", "s.toml", "page.html"}
    assert {path.name for path in tmp_path.iterdir()} == {"home"}
    assert main(["import", "~/run/none", "--model", "resnet18", "--out=~/w.safetensors"]) == 65
    assert str(home / "run" / "none") in capsys.readouterr().err
    assert main(["predict", "~/run", "~/none.png"]) in (65, 69)
    seen: list[Config] = []
    monkeypatch.setattr(training, "fit", lambda config, *_, **__: seen.append(config))
    with pytest.raises(TypeError):  # there is no history
        main([*TRAIN, "--data-dir=~/data"])
    assert seen[0].data_dir == str(home / "data")


def test_runs_that_start_at_once_have_folders_of_their_own() -> None:
    command = [sys.executable, "-m", "invocupy", *TRAIN]
    runs = [
        subprocess.Popen([*command, "--seed", str(i)], stderr=subprocess.PIPE, text=True)
        for i in range(3)
    ]
    errors = [run.communicate(timeout=120)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], errors
    seeds = {load_run(folder, "last")[0].seed for folder in Path("runs").iterdir()}
    assert seeds == {0, 1, 2}


def test_a_run_that_fails_leaves_no_folder_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = one_line(capsys, *TRAIN, "--dataset", "cifar10", "--data-dir", "none")
    assert code == 65
    assert not list(Path().iterdir())
    Path("runs").write_text("notes")
    assert one_line(capsys, *TRAIN)[0] == 1
    Path("runs").unlink()
    Path("runs").symlink_to("nowhere")
    assert one_line(capsys, *TRAIN)[0] == 1


# ------------------------------------------------------------------------------------- streams


def program(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {n: v for n, v in os.environ.items() if n != "PYTHONUNBUFFERED"}
    environment |= options.pop("env", {})
    return subprocess.run(
        [sys.executable, "-m", "invocupy", *arguments],
        env=environment, text=True, timeout=120, **{"stderr": subprocess.PIPE} | options,
    )  # fmt: skip


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", ["--help", "--version", "train --help", "summary", "evaluate"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_and_a_closed_pipe_have_their_codes(
    trained: str, command: str, unbuffered: str
) -> None:
    environment = {"PYTHONUNBUFFERED": unbuffered}
    arguments = [*command.split(), *([trained] if command == "evaluate" else [])]
    with Path("/dev/full").open("w") as full:
        done = program(*arguments, stdout=full, env=environment)
    assert done.returncode == 1
    assert re.fullmatch(r"invocupy: .*No space left on device\n", done.stderr)
    read, write = os.pipe()
    os.close(read)
    done = program(*arguments, stdout=write, env=environment)
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("command", "code"), [("evaluate none", 65), ("dance", 2), ("train --lr 0", 2)]
)
def test_messages_that_nobody_can_read_leave_the_code(command: str, code: int) -> None:
    with Path("/dev/full").open("w") as full:
        assert program(*command.split(), stdout=subprocess.PIPE, stderr=full).returncode == code
    read, write = os.pipe()
    os.close(read)
    done = program(*command.split(), stdout=subprocess.PIPE, stderr=write)
    os.close(write)
    assert done.returncode == code


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "ascii:replace", "COLUMNS": "0"},
        {"COLUMNS": "1"},
    ],
)
def test_encodings_and_widths(trained: str, environment: dict[str, str]) -> None:
    Path("übung ×").symlink_to(trained)
    for arguments in (
        ["report", "übung ×"], ["evaluate", "übung × nicht da"], ["train", "--help"], ["--help"],
    ):  # fmt: skip
        done = program(*arguments, stdout=subprocess.PIPE, env=environment)
        assert done.returncode == (65 if "nicht" in arguments[-1] else 0), done.stderr
        assert "Traceback" not in done.stderr


def test_a_page_into_a_pipe_is_the_page(trained: str) -> None:
    whole = program("report", trained, "--out", "page.html", stdout=subprocess.PIPE)
    assert whole.stdout == "page.html\n"
    piped = program("report", trained, "--out", "/dev/stdout", stdout=subprocess.PIPE)
    assert piped.stdout == Path("page.html").read_text()
    Path("log").write_text("before\n")
    with Path("log").open("a") as log:
        program("report", trained, "--out", "/dev/stdout", stdout=log)
    assert Path("log").read_text() == "before\n" + piped.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_schedulers_end_saves(number: signal.Signals, code: int) -> None:
    command = [sys.executable, "-m", "invocupy", *TRAIN, "--epochs", "2000", "--out", "run"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    ) as process:  # fmt: skip
        assert process.stderr is not None
        while not (line := process.stderr.readline()).startswith("epoch"):
            assert line  # before the first one there are others
        process.send_signal(number)
        err = process.communicate(timeout=60)[1]
    assert process.returncode == code
    step = int(re.search(r"interrupted in epoch \d+ after step (\d+)", err)[1])  # type: ignore[index]
    state = checkpoint.load("run/last.safetensors")[1]["state"]
    assert 2 * state["epoch"] + state["step"] == step
    assert not Path("run/.invocupy.lock").exists()


# ------------------------------------------------------------------------------ files that are read


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_byte_order_marks(mark: bytes) -> None:
    Path("s.toml").write_bytes(mark + b"layers = 3\r\n")
    Path("s.json").write_bytes(mark + b'{"layers": 3}')
    assert read_settings("s.toml") == read_settings("s.json") == {"layers": 3}


@pytest.mark.parametrize(
    "content",
    [
        "layers = 3\n".encode("utf-16"), b"\xff\xfe", b"layers = \xe9", b"layers = ",
        b"a = [" * 9999,
        b"colour = 1", b"layers = 3\nlayers = 4", b"layers = [3]", b"layers = nan", b"\0" * 2**21,
        b'data_dir = "a\\u0000b"\ndataset = "cifar10"', b"lr = 1e999", b"[lr]\nx = 1",
    ],
)  # fmt: skip
def test_settings_that_are_none(content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    Path("s.toml").write_bytes(content)
    assert one_line(capsys, "train", "--config", "s.toml")[0] in (2, 65)
    assert one_line(capsys, "summary", "--config", "s.toml", "--layers", "-1")[0] == 2


DAMAGED = [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 99999, b'{"packages": {}, "devices": 1}']


@pytest.mark.parametrize("content", DAMAGED)
def test_damaged_run_folders(run: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "machine.json").write_bytes(content)
    code, line = one_line(capsys, "report", str(run))
    assert code == 65
    assert "machine.json is damaged: remove it, or resume the run" in line
    for name in ("config.json", "metrics.jsonl"):
        (run / name).write_bytes(content)
    assert main(["evaluate", str(run)]) == 0  # needs none of them
    assert main(["train", "--resume", str(run), "--no-plots"]) == 0
    assert main(["report", str(run)]) == 0
    capsys.readouterr()
    for name in ("last.safetensors", "best.safetensors"):
        (run / name).write_bytes(content)
    for command in (["evaluate", str(run)], ["report", str(run)], ["train", "--resume", str(run)]):
        assert one_line(capsys, *command)[0] == 65


@pytest.mark.parametrize("name", ["seconds", "lr", "train_loss", "images_per_second", "epoch"])
@pytest.mark.parametrize("value", ["high", None, [], ...])
def test_lines_of_epochs_that_cannot_be_shown(
    run: Path, name: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for which in ("last", "best"):
        arrays, info = checkpoint.load(run / f"{which}.safetensors")
        row = info["state"]["history"][0]
        if value is ...:
            del row[name]
        else:
            row[name] = value
        checkpoint.save(run / f"{which}.safetensors", arrays, info)
    code, line = one_line(capsys, "report", str(run))
    assert code == 65
    assert f"{name} of an epoch must be a number" in line


def test_numbers_that_are_not_finite_are_null(
    trained: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = training.evaluate
    monkeypatch.setattr(
        training, "evaluate", lambda *a, **b: right(*a, **b)._replace(loss=float("nan"))
    )
    assert main(["evaluate", trained, "--json"]) == 0
    result = json.loads(capsys.readouterr().out, parse_constant=lambda c: pytest.fail(c))
    assert result["loss"] is None
    assert checkpoint.strict({"a": [np.float64("inf"), (1, np.nan)], "b": np.ones(2)}) == {
        "a": [None, [1, None]], "b": [1.0, 1.0],
    }  # fmt: skip


def test_too_little_memory_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise MemoryError("Unable to allocate 1.2 TiB\nfor an array")

    monkeypatch.setattr(training, "fit", full)
    code, line = one_line(capsys, *TRAIN)
    assert (code, line) == (1, "invocupy: Unable to allocate 1.2 TiB for an array")
    assert not list(Path().iterdir())


def test_flags_that_need_a_finite_number(capsys: pytest.CaptureFixture[str]) -> None:
    for value in ("nan", "inf", "0", "-1", "1e308", "3601"):
        assert "finite" in one_line(capsys, "bench", "--seconds", value)[1]
    for device in ("x", "cuda:", "cuda:" + "9" * 5000, "cuda:0:1"):
        assert one_line(capsys, "bench", "--device", device)[0] == 2


def test_one_layer_named_twice_is_shown_once(
    trained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--layers", "1", "--limit", "20", "--epochs", "1", "--device", "cpu"]
    assert main(["train", *arguments, "--no-plots", "--out", "one"]) == 0
    assert main(["report", "one", "--involutions", "0", "0", "--device", "cpu"]) == 0
    assert Path("one/report.html").read_text().count("blocks 0") == 3  # of three images


def test_a_run_keeps_the_permissions_of_files() -> None:
    assert main([*TRAIN, "--out", "run"]) == 0
    Path("run/last.safetensors").chmod(0o640)
    assert main(["train", "--resume", "run", "--epochs", "2", "--no-plots"]) == 0
    assert stat.S_IMODE(Path("run/last.safetensors").stat().st_mode) == 0o640
