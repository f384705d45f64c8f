"""The hook writes what the history has, once."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import HEAD

from invocupy.cli import main
from invocupy.extras import MissingExtra
from invocupy.train import fit, tensorboard


def read(folder: Path) -> dict[tuple[str, int], list[float]]:
    """Tags and steps to values, by the package's own record format: length, sum, event, sum."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found: dict[tuple[str, int], list[float]] = {}
    for path in sorted(folder.glob("events*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            size = int.from_bytes(content[at : at + 8], "little")
            event = event_pb2.Event.FromString(content[at + 12 : at + 12 + size])
            at += 16 + size
            for value in event.summary.value:
                found.setdefault((value.tag, event.step), []).append(value.simple_value)
    return found


def test_the_numbers_of_each_epoch(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    write = tensorboard(tmp_path / "logs")

    def after_epoch(model: Any, row: dict[str, Any]) -> None:
        row |= {"norm": np.float32(2.5), "note": "a text", "flag": True, "none": float("nan")}
        write(model, row)

    history = fit(replace(HEAD, validation=0.2), after_epoch=after_epoch)
    write(None, history[-1])
    found = read(tmp_path / "logs")
    wanted = {
        (tag, row["step"]): row[name]
        for row in history
        for name, tag in (
            ("train_loss", "loss/train"), ("val_accuracy", "accuracy/val"), ("norm", "norm"),
            ("test_loss", "loss/test"), ("test_accuracy", "accuracy/test"), ("lr", "lr"),
        )
        if row[name] is not None
    }  # fmt: skip
    assert len(wanted) == 2 * 4 + 2
    for key, value in wanted.items():
        assert len(found[key]) == 1
        assert math.isclose(found[key][0], value, rel_tol=1e-6)
    assert {tag for tag, _ in found}.isdisjoint({"note", "flag", "none", "epoch", "step"})


def test_the_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboardX")
    monkeypatch.chdir(tmp_path)
    run = ["train", "--layers", "0", "--limit", "20", "--batch-size", "10", "--no-plots"]
    assert main([*run, "--epochs", "1", "--out", "a", "--tensorboard"]) == 0
    assert main([*run, "--epochs", "2", "--resume", "a", "--tensorboard"]) == 0
    found = read(tmp_path / "a" / "tensorboard")
    assert sorted(step for tag, step in found if tag == "loss/test") == [2, 4]


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(MissingExtra, match=r"pip install 'invocupy\[tensorboard\]'"):
        tensorboard(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--tensorboard", "--out", "a"]) == 69
    assert not (tmp_path / "a").exists()
