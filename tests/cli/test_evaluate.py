"""invocupy evaluate: for people and for programs."""

from __future__ import annotations

import json

import numpy as np
import pooch  # noqa: F401  (its logger keeps the standard error of its first import)
import pytest
from command import TRAIN

from invocupy import data
from invocupy.cli import main
from invocupy.train import load_run

pytestmark = pytest.mark.usefixtures("own_folder")

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
    assert f"test accuracy {history[-1]['test_accuracy']:.2%}" in out
    assert all(name in out for name in data.SHAPES10_CLASSES)
    assert err == ""


def test_evaluate_a_class_without_images(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRAIN, "--limit", "3", "--out", "a"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "a", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["class_accuracy"].count(None) == 7
    assert main(["evaluate", "a"]) == 0
    assert " - " in capsys.readouterr().out
