"""``invocupy predict``: answers for files, and what is said of those that are none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from invocupy.cli import main
from invocupy.data import SHAPES10_CLASSES, SHAPES10_MEAN, SHAPES10_STD
from invocupy.train import Config, fit, load_data, load_run, predict

Image = pytest.importorskip("PIL.Image", reason="needs the extra plots")


CONFIG = Config(layers=2, epochs=2, batch_size=20, limit=60, device="cpu")
STYLE: dict[str, Any] = {"mean": SHAPES10_MEAN, "std": SHAPES10_STD}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("runs") / "short"
    fit(CONFIG, folder)
    return str(folder)


def save(path: Path, pixels: Any, **options: Any) -> str:
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)
    return str(path)


def test_predict_answers_as_the_model_does(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, model, _ = load_run(run)
    images, _ = load_data(CONFIG, train=False)
    wanted = predict(model, images[:3], **STYLE)
    paths = [save(tmp_path / f"{i}.png", images[i].transpose(1, 2, 0)) for i in range(3)]
    assert main(["predict", run, *paths, "--json", "--top", "10", "--device", "cpu"]) == 0
    result = json.loads(capsys.readouterr().out)
    for row, path, probabilities in zip(result["images"], paths, wanted, strict=True):
        assert row["image"] == path
        given = {item["class"]: item["probability"] for item in row["classes"]}
        for name, probability in zip(SHAPES10_CLASSES, probabilities, strict=True):
            assert given[name] == pytest.approx(probability, rel=1e-4, abs=1e-9)
        assert [*given.values()] == sorted(given.values(), reverse=True)
    assert main(["predict", run, paths[1]]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    best = SHAPES10_CLASSES[wanted[1].argmax()]
    assert re.match(rf"{re.escape(paths[1])}  {best} [\d.]+%  \w+ [\d.]+%  \w+ [\d.]+%\n$", out)


def test_predict_answers_the_others_when_a_file_is_bad(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = save(tmp_path / "a.png", np.zeros((8, 8, 3))), tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8\xff")
    assert main(["predict", run, str(bad), good]) == 65
    out, err = capsys.readouterr()
    assert err.splitlines() == [line for line in err.splitlines() if "bad.jpg cannot be" in line]
    assert out.startswith(good)
    assert main(["predict", run, str(bad), good, "--json"]) == 65
    first, second = json.loads(capsys.readouterr().out)["images"]
    assert "cannot be read as an image" in first["error"]
    assert len(second["classes"]) == 3
    assert main(["predict", run, str(bad)]) == 65
    assert capsys.readouterr().out == ""
