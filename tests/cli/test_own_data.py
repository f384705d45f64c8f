"""The commands on runs whose images or model fit was given."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import fails

from invocupy import nn
from invocupy.cli import main
from invocupy.data import grey
from invocupy.report import gather
from invocupy.train import Config, fit, open_run, predict

pytestmark = pytest.mark.usefixtures("own_folder")

MODEL = """
from invocupy import nn

def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GlobalAvgPool2d(), nn.Linear(4, 10))

def broken():
    raise RuntimeError("two\\nlines")
"""
CONFIG = Config(layers=0, epochs=1, batch_size=20, limit=40, device="cpu")


def gray_sets() -> Any:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 1, 12, 12), dtype=np.uint8), np.arange(40) % 4
    return images, labels, images[:9], labels[:9]


def test_predict_of_a_run_on_grey_arrays(capsys: pytest.CaptureFixture[str]) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="needs the extra plots")
    data = gray_sets()
    fit(CONFIG, "run", data=data)
    pillow.fromarray(data[2][0, 0]).save("a.png")
    assert main(["predict", "run", "a.png", "--json", "--top", "4", "--device", "cpu"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["images"]
    _, model, _, about = open_run("run")
    wanted = predict(model, data[2][:1], **about.style())[0]
    for item in row["classes"]:
        assert item["probability"] == pytest.approx(wanted[int(item["class"])], rel=1e-6)
    assert grey(np.full((3, 1, 1), 255, np.uint8)).item() == 255


def test_what_needs_the_arrays_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    data = gray_sets()
    fit(CONFIG, "run", data=data)
    for command in ("evaluate", "report", "plot"):
        if command != "evaluate":
            pytest.importorskip("matplotlib", reason="needs the extra plots")
        assert "was trained on arrays" in fails(capsys, 2, command, "run")
    found = gather("run", data=(data[2], data[3]), device="cpu")
    assert found.confusion.shape == (4, 4)
    assert found.images == 9
    fit(CONFIG, "wide", data=(*(data[0][..., :5], data[1]), *(data[2][..., :5], data[3])))
    assert "image files give squares" in fails(capsys, 2, "predict", "wide", "a.png")


def test_a_model_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.py").write_text(MODEL)
    own = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GlobalAvgPool2d(), nn.Linear(4, 10))
    history = fit(CONFIG, "run", model=own)
    assert "--model-from module:function" in fails(capsys, 65, "evaluate", "run")
    assert main(["evaluate", "run", "--model-from", "mine:make", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"] == history[-1]["test_accuracy"]
    for given, words in (
        ("mine", "must be MODULE:FUNCTION"),
        ("mine:other", "AttributeError: .* has no attribute 'other'"),
        ("nobody:make", "ModuleNotFoundError"),
        ("mine:broken", "RuntimeError: two lines"),
    ):
        assert re.search(words, fails(capsys, 2, "evaluate", "run", "--model-from", given))


def test_a_report_of_a_model_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    Path("mine.py").write_text(MODEL)
    own = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GlobalAvgPool2d(), nn.Linear(4, 10))
    fit(CONFIG, "run", model=own)
    for command in ("report", "plot"):
        assert main([command, "run", "--model-from", "mine:make"]) == 0
    assert Path("run/report.html").exists()
