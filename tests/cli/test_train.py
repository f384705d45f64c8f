"""invocupy train: what it prints, its flags, and that it can be stopped and resumed."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

import numpy as np
import pooch  # noqa: F401  (its logger keeps the standard error of its first import)
import pytest
from command import TINY, TRAIN, fails, start

from invocupy import checkpoint
from invocupy import train as training
from invocupy.cli import main
from invocupy.cli.settings import add_settings, given_settings
from invocupy.train import Config, fit, load_run

pytestmark = pytest.mark.usefixtures("own_folder")

# ---------------------------------------------------------------------------------------- training


def test_train_says_where_the_run_is_and_how_it_ended(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(TRAIN) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(
        r"test accuracy [\d.]+% after 2 epochs and \d+ s of training\n"
        r"run: runs/shapes10-simple-1\n",
        out,
    )
    # no bar off a terminal: a line an epoch
    told = [line for line in err.splitlines() if "compil" not in line]
    first, *lines, last = told
    start = "cpu, shapes10 (40 + 40 images, 10 classes), "
    assert re.fullmatch(rf"{re.escape(start)}[\d,]+ parameters, run runs/shapes10-simple-1", first)
    assert last == "next: invocupy report runs/shapes10-simple-1"
    assert [line.split()[:2] for line in lines] == [["epoch", "1/2"], ["epoch", "2/2"]]
    for line in lines:
        for part in ("loss", "accuracy", "test loss", "test accuracy", "images/s"):
            assert part in line
        assert len(line) <= 80
    assert main(TRAIN) == 0
    assert "runs/shapes10-simple-2" in capsys.readouterr().out
    assert main([*TRAIN, "--epochs", "1"]) == 0
    assert " after 1 epoch and " in capsys.readouterr().out


@pytest.mark.parametrize(("flags", "lines"), [
    (["--width=96", "--image-size=24", "--drop=0.5", "--data-dir=x", "--patience=3"], [
        "data_dir has no effect with dataset shapes10, whose images are generated",
        "image_size has no effect with dataset shapes10: it is for dataset folder",
        "width has no effect with model simple: it is for model small",
        "drop has no effect with schedule one_cycle: it is for schedule step",
        "patience has no effect without validation",
    ]),
    (["--width", "64", "--schedule", "step", "--drop", "0.5"], []),  # the default, and used
])  # fmt: skip
def test_settings_without_effect_are_named(
    flags: list[str], lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["summary", *flags]) == 0
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if "effect" in line] == [f"invocupy: {line}" for line in lines]


def test_a_run_names_settings_without_effect(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRAIN, "--out", "a"]) == 0
    assert "effect" not in capsys.readouterr().err
    assert main(["train", "--resume", "a", "--epochs", "3", "--patience", "1"]) == 0
    assert "invocupy: patience has no effect without validation\n" in capsys.readouterr().err


def test_train_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRAIN, "--out", "a", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in Path("a/metrics.jsonl").read_text().splitlines()]
    assert result["history"] == rows
    assert result["run"] == "a"
    assert result["epochs"] == 2
    assert result["test_accuracy"] == rows[-1]["test_accuracy"]
    assert (result["best_accuracy"], result["best_epoch"]) == (None, 2)
    assert Config(**result["config"]) == Config(
        layers=0, limit=40, batch_size=20, epochs=2, device="cpu"
    )


def test_train_with_a_validation_share(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRAIN, "--validation", "0.25", "--patience", "2", "--out", "a"]) == 0
    out, err = capsys.readouterr()
    assert re.match(
        r"test accuracy [\d.]+% after 2 epochs and \d+ s of training "
        r"\(weights of epoch [12], validation [\d.]+%\)\n",
        out,
    )
    assert "validation loss" in err
    assert "test loss" not in err
    assert main([*TRAIN, "--validation", "0.25", "--out", "b", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["best_accuracy"] == max(row["val_accuracy"] for row in result["history"])
    assert result["test_accuracy"] == result["history"][-1]["test_accuracy"]
    assert main(["evaluate", "b", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"] == result["test_accuracy"]
    assert found["epochs"] == result["best_epoch"]


def test_where_there_is_no_bar_a_line_tells_of_a_step_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from invocupy.cli import train

    monkeypatch.setattr(train, "_QUIET", 0.0)
    assert main([*TRAIN, "--epochs", "1"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line[:5] == "epoch"]
    assert [line.split()[:4] for line in lines[:2]] == [
        ["epoch", "1/1", "step", "1/2"], ["epoch", "1/1", "step", "2/2"],
    ]  # fmt: skip
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main([*TRAIN, "--epochs", "1"]) == 0
    assert "step 1/2" not in capsys.readouterr().err  # the bar says it


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
        "patience": 9, "cutout": 10, "validation": 0.5, "image_size": 16,
        "spatial": "depthwise", "width": 33, "graph": "auto",
    }  # fmt: skip
    arguments = [
        word
        for name, value in flags.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    switches = ["nesterov", "head_relu", "decay_biases", "sync_norm", "recompute"]
    given = [f"--no-{name.replace('_', '-')}" for name in switches] + ["--signed"]
    assert main(["train", *arguments, *given, "--skip-broken", "--milestones", "0.25", "1"]) == 130
    rest = {
        **dict.fromkeys(switches, False),
        "signed": True,
        "milestones": (0.25, 1.0),
        "skip_broken": True,
    }
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
        (["--out", "elsewhere"], "give --out or --resume, not both"),
    ):
        assert re.search(words, fails(capsys, 2, "train", "--resume", "run", *flags))


# -------------------------------------------------------------------------------------- exit codes


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


# ------------------------------------------------------------------- the program as its own process


def test_ctrl_c_saves_and_the_run_goes_on_exactly() -> None:
    settings = ["--epochs", "2000", "--schedule", "constant", "--lr", "0.001"]
    process = start("train", *TINY, *settings, "--out", "run")
    assert process.stderr is not None
    for _ in range(3):
        _epoch(process.stderr)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert "saved in run; continue with: invocupy train --resume run\n" in err
    step = int(re.search(r"interrupted in epoch \d+ after step (\d+)", err)[1])  # type: ignore[index]
    _, info = checkpoint.load("run/last.safetensors")
    assert 2 * info["state"]["epoch"] + info["state"]["step"] == step
    epochs = info["state"]["epoch"] + 2
    _finish("run", epochs)


def _epoch(stream: IO[str]) -> None:
    """Wait for the line of an epoch; before the first one there are others."""
    while not (line := stream.readline()).startswith("epoch"):
        assert line


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
        _epoch(process.stderr)
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


@pytest.mark.parametrize(("text", "value"), [("on", True), ("off", False), ("auto", "auto")])
def test_the_flag_for_graphs(text: str, value: Any) -> None:
    parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS)
    add_settings(parser)
    assert given_settings(parser.parse_args(["--graph", text])) == {"graph": value}


def test_a_wrong_value_of_that_flag(capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(capsys, 2, "train", "--graph", "maybe")
    assert "graph must be auto, True (on) or False (off), got 'maybe'" in line


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line_among_the_progress(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRAIN, "--graph", "on", "--device", "cpu"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "graph" in line]
    assert lines == ["the steps run without a CUDA graph: the run computes on the CPU"]
