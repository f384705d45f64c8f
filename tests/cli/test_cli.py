"""The command line as its users meet it: exit codes, output for people and for programs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pooch  # noqa: F401  (its logger keeps the standard error of its first import)
import pytest

from invocupy import backends, checkpoint, data, nn
from invocupy import train as training
from invocupy.backends.cpu import threads
from invocupy.cli import info, main, notice
from invocupy.models import SimpleModel
from invocupy.train import Config, fit, load_run

# no involution: nothing to compile; device: so that a GPU changes nothing
TINY = [
    "--layers",
    "0",
    "--limit",
    "40",
    "--batch-size",
    "20",
    "--epochs",
    "2",
    "--device",
    "cpu",
    "--no-plots",
]
TRAIN = ["train", *TINY]


pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main([*TRAIN, "--out", str(folder)]) == 0
    return str(folder)


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """The program in a process of its own, in which Ctrl-C works."""
    return subprocess.Popen(
        [sys.executable, "-m", "invocupy", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a parent in the background may have switched it off
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **options,
    )


def fails(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    """Run, expect the exit code and one line on standard error; the line."""
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"invocupy: [^\n]+\n", err), err
    return err


# ---------------------------------------------------------------------------------------- training


def test_train_says_where_the_run_is_and_how_it_ended(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(TRAIN) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(
        r"test accuracy [\d.]+% after 2 epochs and \d+ s of training "
        r"\(best [\d.]+%, epoch [12]\)\nrun: runs/shapes10-simple-1\n",
        out,
    )
    # no bar off a terminal: a line an epoch
    lines = err.splitlines()
    assert [line.split()[:2] for line in lines] == [["epoch", "1/2"], ["epoch", "2/2"]]
    for line in lines:
        for part in ("loss", "accuracy", "test loss", "test accuracy", "images/s"):
            assert part in line
    assert main(TRAIN) == 0
    assert "runs/shapes10-simple-2" in capsys.readouterr().out
    assert main([*TRAIN, "--epochs", "1"]) == 0
    assert " after 1 epoch and " in capsys.readouterr().out


def test_train_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRAIN, "--out", "a", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in Path("a/metrics.jsonl").read_text().splitlines()]
    assert result["history"] == rows
    assert result["run"] == "a"
    assert result["epochs"] == 2
    assert result["test_accuracy"] == rows[-1]["test_accuracy"]
    assert result["best_accuracy"] == max(row["test_accuracy"] for row in rows)
    assert Config(**result["config"]) == Config(
        layers=0, limit=40, batch_size=20, epochs=2, device="cpu"
    )


def test_a_terminal_gets_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main([*TRAIN, "--epochs", "1"]) == 0
    out, err = capsys.readouterr()
    assert "epoch 1/1:" in err
    assert "epoch 1/1" not in out


def test_every_flag_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def fake(config: Config, *_: Any, **__: Any) -> Any:
        seen.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "fit", fake)
    flags = {
        "dataset": "cifar10", "data_dir": "d", "model": "simple", "layers": 2, "epochs": 3,
        "batch_size": 4, "lr": 0.5, "momentum": 0.25, "weight_decay": 0.125,
        "schedule": "cosine", "warmup": 6, "label_smoothing": 0.75, "augment": "none", "seed": 7,
        "limit": 8, "device": "cpu", "accumulate": 2, "clip_norm": 1.5, "drop": 0.25, "ema": 0.5,
        "patience": 9, "cutout": 10, "spatial": "depthwise", "width": 33,
    }  # fmt: skip
    arguments = [
        word
        for name, value in flags.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    switches = ["nesterov", "head_relu", "decay_biases", "sync_norm", "recompute"]
    given = [f"--no-{name.replace('_', '-')}" for name in switches] + ["--signed"]
    assert main(["train", *arguments, *given, "--milestones", "0.25", "1"]) == 130
    rest = {**dict.fromkeys(switches, False), "signed": True, "milestones": (0.25, 1.0)}
    assert seen == [Config(**flags, **rest)]
    assert {*flags, *rest, "overfit"} == {item.name for item in fields(Config)}
    assert main(["train"]) == 130
    assert seen[1] == Config()
    assert main(["train", "--overfit", "3"]) == 130
    assert seen[2] == Config(overfit=3)


def test_resume(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRAIN, "--out", "whole", "--epochs", "3"]) == 0
    assert main([*TRAIN, "--out", "run"]) == 0
    assert main(["train", "--resume", "run", "--epochs", "3", "--layers", "0"]) == 0
    _, _, history = load_run("run", "last")
    assert [row["step"] for row in history] == [2, 4, 6]
    capsys.readouterr()
    for flags, words in (
        (["--lr", "0.5"], "lr is .* there, not 0.5"),
        (["--layers", "1", "--seed", "2"], "layers is 0 there, not 1; seed is 0 there, not 2"),
        (["--epochs", "2"], "epochs must be at least 3"),
        (["--out", "elsewhere"], "--out and --resume exclude each other"),
    ):
        assert re.search(words, fails(capsys, 2, "train", "--resume", "run", *flags))


# ------------------------------------------------------------------------------ evaluate, and info


def test_evaluate(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, history = load_run(trained, "last")
    assert main(["evaluate", trained, "--checkpoint", "last", "--device", "cpu", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["accuracy"] == history[-1]["test_accuracy"]
    assert result["loss"] == pytest.approx(history[-1]["test_loss"], rel=1e-5)
    confusion = np.array(result["confusion"])
    assert confusion.sum() == result["images"] == 40
    assert confusion.trace() / 40 == result["accuracy"]
    for i, share in enumerate(result["class_accuracy"]):
        assert share == confusion[i, i] / confusion[i].sum()
    assert result["classes"] == list(data.SHAPES10_CLASSES)

    assert main(["evaluate", trained]) == 0
    out, err = capsys.readouterr()
    best = max(row["test_accuracy"] for row in history)
    assert f"test accuracy {best:.2%}" in out
    assert all(name in out for name in data.SHAPES10_CLASSES)
    assert err == ""


def test_evaluate_a_class_without_images(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRAIN, "--limit", "3", "--out", "a"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "a", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["class_accuracy"].count(None) == 7
    assert main(["evaluate", "a"]) == 0
    assert " - " in capsys.readouterr().out


def test_info(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "_warm", lambda _: 1.5)
    assert main(["info", "--warm", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["self_check"]["cpu"] == []
    assert result["warm_seconds"]["cpu"] == 1.5
    assert result["packages"]["numpy"] == np.__version__
    assert result["threads"] >= 1
    assert main(["info", "--warm"]) == 0
    out = capsys.readouterr().out
    assert "cpu: " in out
    assert "kernels agree with the reference" in out
    assert "ready after 1.5 s" in out


def test_info_says_why_kernels_are_not_kept(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from invocupy.backends.cpu import jit

    monkeypatch.setattr(info, "_self_check", lambda _: [])
    monkeypatch.setattr(jit, "_place", jit._place.__wrapped__)
    (tmp_path / "file").touch()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for given, reason in (
        ("", "INVOCUPY_CACHE_DIR is empty"),
        ("file", "File exists"),
        ("open", "must belong to this user and be writable by nobody else"),
        ("~no_such_user/x", "give the whole path"),
    ):
        path = given if given[:1] in ("", "~") else str(tmp_path / given)
        monkeypatch.setenv("INVOCUPY_CACHE_DIR", path)
        assert main(["info"]) == 0
        out = capsys.readouterr().out
        assert "compiled CPU kernels: in memory only; " in out
        assert reason in out


@pytest.mark.parametrize(
    ("op", "function", "names"),
    [
        ("involution", "fused_forward", "fused_involution"),
        ("involution", "grad_kernel", "involution_backward, involution_backward (stride 2)"),
        ("convolution", "grad_x", "conv2d, conv2d (stride 2)"),
        ("pointwise", "forward", "conv2d (1x1), linear"),
        ("pooling", "avg_pool_grad", "avg_pool2d"),
    ],
)
def test_info_sees_a_wrong_kernel(
    op: str, function: str, names: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    backend = backends.of(op, np.ones(1))
    right = getattr(backend, function)

    def wrong(*arguments: Any) -> None:
        right(*arguments)
        out = next(a for a in reversed(arguments) if isinstance(a, np.ndarray) and a.ndim > 1)
        out.flat[5] += 1

    monkeypatch.setattr(backend, function, wrong)
    assert main(["info"]) == 1
    assert f"KERNELS ARE WRONG: {names}\n" in capsys.readouterr().out


@pytest.mark.parametrize("given", ["two", "0", "-1", "1e3", "2.0", "0x2", "²", "1" * 5000])
def test_2_for_a_number_of_threads_that_is_none(
    given: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(threads, "_default", threads._default.__wrapped__)
    monkeypatch.setattr(threads, "_limit", threads._limit.__wrapped__)
    monkeypatch.setenv("INVOCUPY_NUM_THREADS", given)
    assert main(["info"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("invocupy: INVOCUPY_NUM_THREADS must be an integer >= 1, or empty")
    assert repr(given) in line


def test_warm_runs_what_it_shall_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    forward, logits = nn.Involution.forward, SimpleModel.logits

    def noted(layer: nn.Involution, x: Any) -> Any:
        seen.append((layer.kernel_size[0], layer.stride[0]))
        return forward(layer, x)

    def noted_model(model: SimpleModel, x: Any) -> Any:
        seen.append(len(model.blocks))
        return logits(model, x)

    monkeypatch.setattr(nn.Involution, "forward", noted)
    monkeypatch.setattr(SimpleModel, "logits", noted_model)
    monkeypatch.setattr(info, "_WARM", ((1, 2),))  # quick to compile
    assert info._warm("cpu") > 0
    assert seen[0] == 1
    assert seen[-1] == (1, 2)


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
    for name in (*data.cifar.TRAIN_FILES, *data.cifar.TEST_FILES):
        Path("d", name).write_bytes(b"\0" * 3073)
    assert "must have 30730000 bytes" in fails(capsys, 65, *cifar)
    assert not Path("runs").exists()


def test_65_for_bad_checkpoints(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no folder none" in fails(capsys, 65, "evaluate", "none")
    assert "there is no folder none" in fails(capsys, 65, "train", "--resume", "none")
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
    monkeypatch.setattr(data.cifar, "URL", "http://127.0.0.1:9/cifar-10-binary.tar.gz")
    monkeypatch.setattr(data.cifar, "_RETRIES", 0)
    error = fails(capsys, 69, "train", "--dataset", "cifar10")
    assert "shapes10, which needs no network" in error


def test_70_for_numbers_that_go_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    error = fails(capsys, 70, *TRAIN, "--lr", "1e30", "--schedule", "constant", "--out", "a")
    assert re.search(r"training loss is (nan|inf) in epoch 1, step 2 .*lower lr", error)
    arrays, info = checkpoint.load("a/last.safetensors")
    assert info["state"]["step"] == 0
    assert all(np.isfinite(array).all() for array in arrays.values())


def test_1_for_what_the_system_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").touch()
    assert "file" in fails(capsys, 1, *TRAIN, "--out", "file/run")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device"), 1, "No space left"),
    ],
)
def test_a_run_that_cannot_begin_leaves_its_folder_free(
    error: BaseException,
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", refuse)
        assert words in fails(capsys, code, *TRAIN, "--out", "run")
    assert main([*TRAIN, "--out", "run"]) == 0


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


def test_ctrl_c_saves_and_the_run_goes_on_exactly() -> None:
    settings = ["--epochs", "2000", "--schedule", "constant", "--lr", "0.001"]
    process = start("train", *TINY, *settings, "--out", "run")
    assert process.stderr is not None
    for _ in range(3):
        assert process.stderr.readline().startswith("epoch")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    step = int(re.search(r"interrupted in epoch \d+ after step (\d+)", err)[1])  # type: ignore[index]
    _, info = checkpoint.load("run/last.safetensors")
    assert 2 * info["state"]["epoch"] + info["state"]["step"] == step
    epochs = info["state"]["epoch"] + 2
    _finish("run", epochs)


def _finish(folder: str, epochs: int) -> None:
    """Resume a run of TINY at a constant rate; it must end as one that was never stopped."""
    config = load_run(folder, "last")[0]
    config = Config(**{**vars(config), "epochs": epochs})
    fit(config, folder, resume=True)
    fit(config, "whole")
    resumed, whole = (checkpoint.load(f"{run}/last.safetensors")[0] for run in (folder, "whole"))
    assert resumed.keys() == whole.keys()
    for name, array in whole.items():
        assert resumed[name].tobytes() == array.tobytes()


def test_kill_9_at_any_time_leaves_a_run_that_goes_on_exactly() -> None:
    settings = ["--epochs", "2000", "--schedule", "constant", "--lr", "0.001", "--out", "run"]
    rng = np.random.default_rng(0)
    arguments = ["train", *TINY, *settings]
    for _ in range(4):
        process = start(*arguments)
        assert process.stderr is not None
        assert process.stderr.readline().startswith("epoch")
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        process.communicate()
        arguments = ["train", "--resume", "run"]
        epoch = checkpoint.load("run/last.safetensors")[1]["state"]["epoch"]
        lines = Path("run/metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] in (
            [*range(1, epoch + 1)],
            [*range(1, epoch)],  # killed between the checkpoint and what is only to be read
        )
    _finish("run", epoch + 1)


def test_training_needs_no_network(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import socket\n"
        "def refuse(*_, **__): raise OSError('the network is off')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    process = start("train", *TINY, "--out", "run", env=environment)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "test accuracy" in out
    off = start("train", "--dataset", "cifar10", env={**environment, "INVOCUPY_DATA": "empty"})
    assert "the network is off" in off.communicate(timeout=60)[1]
    assert off.returncode == 69


def test_a_test_loss_that_is_not_finite_is_still_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = training.evaluate
    for module in (training, training.loop):
        monkeypatch.setattr(
            module, "evaluate", lambda *a, **b: right(*a, **b)._replace(loss=float("inf"))
        )  # fmt: skip
    assert main([*TRAIN, "--out", "a", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["test_loss"] is None
    assert "test loss not finite" in err
    assert main(["evaluate", "a", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] is None


# ------------------------------------------------------------------- kernels that are compiled


def test_long_compiling_is_told_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notice, "_PATIENCE", 0.05)
    with notice.compiling_is_told():
        assert backends.on_compile is not None
        backends.on_compile("quick", False)
        backends.on_compile("quick", True)
        time.sleep(0.1)
        assert capsys.readouterr().err == ""
        backends.on_compile("outer", False)
        backends.on_compile("inner", False)
        time.sleep(0.2)
        for name, done in (("inner", True), ("outer", True), ("more", False), ("more", True)):
            backends.on_compile(name, done)
    assert backends.on_compile is None
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("invocupy: compiling CPU kernels for their first use here")
    assert re.fullmatch(r"invocupy: compiled 4 kernels in 0 s", last)


def test_compilers_tell_when_they_begin_and_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from invocupy.backends.cpu import jit

    monkeypatch.setenv("INVOCUPY_CACHE_DIR", str(tmp_path))
    jit._place.cache_clear()
    seen: list[tuple[str, bool]] = []
    monkeypatch.setattr(backends, "on_compile", lambda *what: seen.append(what))

    def kernel(x: int) -> int:
        return x + 1

    try:
        assert jit.jit(kernel)(1) == 2
        assert seen == [("kernel", False), ("kernel", True)]
    finally:
        jit._place.cache_clear()
