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
from invocupy.cli.options import model_from
from invocupy.data import SHAPES10_CLASSES, DataError, folder, grey, shapes10
from invocupy.report import gather
from invocupy.train import Config, fit, open_run, predict

pytestmark = pytest.mark.usefixtures("own_folder")

MODEL = """
from invocupy import nn

def make():
    print("no JSON")
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GlobalAvgPool2d(), nn.Linear(4, 10))

def leave():
    raise SystemExit(0)

def broken():
    raise RuntimeError("two\\nlines")
"""
CONFIG = Config(layers=0, epochs=1, batch_size=20, limit=40, device="cpu")


FOLDER = [
    "train", "--dataset", "folder", "--data-dir", "colours", "--image-size", "8", "--layers", "0",
    "--epochs", "3", "--batch-size", "6", "--lr", "0.002", "--device", "cpu", "--no-plots",
]  # fmt: skip


@pytest.fixture
def colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images of three colours, in folders."""
    pillow = pytest.importorskip("PIL.Image", reason="needs the extra plots")
    monkeypatch.setattr(folder, "cache_root", lambda: tmp_path / "cache")
    rng = np.random.default_rng(0)
    for part, count in (("train", 10), ("test", 4)):
        for channel, name in enumerate(("ruby", "leaf", "sky")):
            place = Path("colours", part, name)
            place.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 60, (9, 9, 3), dtype=np.uint8)
                pixels[..., channel] += 150
                pillow.fromarray(pixels).save(place / f"{i}.png")
    return Path("colours")


def test_names_that_a_terminal_would_obey(
    colours: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They stay in the run and in JSON, and are printed without what they command."""
    name = "sky\x1b[2J\tblue\n"
    for part in ("train", "test"):
        (colours / part / "sky").rename(colours / part / name)
    assert main([*FOLDER, "--out", "run", "--json"]) == 0
    capsys.readouterr()
    image = str(next((colours / "test" / name).iterdir()))
    for command in (["evaluate", "run"], ["predict", "run", image]):
        assert main(command) == 0
        lines = capsys.readouterr().out.splitlines()
        assert any("sky?[2J?blue?" in line for line in lines)
        assert all(line.isprintable() for line in lines)
        assert main([*command, "--json"]) == 0
        assert json.dumps(name) in capsys.readouterr().out
    bad = colours / "train" / "leaf" / "no\x1b[2J\nimage\udcff.png"
    bad.write_bytes(b"")
    assert fails(capsys, 65, *FOLDER, "--out", "other")[:-1].isprintable()
    assert main([*FOLDER, "--out", "other", "--skip-broken"]) == 0
    assert main(["predict", "run", str(bad)]) == 65
    lines = capsys.readouterr().err.splitlines()
    assert sum("no?[2J?image?.png" in line for line in lines) == 2
    assert all(line.isprintable() for line in lines)


def test_three_coloured_folders(colours: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FOLDER, "--validation", "0.2", "--out", "run", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["test_accuracy"] == 1.0
    assert main(["evaluate", "run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["classes"] == ["leaf", "ruby", "sky"]
    assert (found["accuracy"], found["images"], found["dataset"]) == (1.0, 12, "folder")
    assert main(["predict", "run", "colours/test/sky/0.png", "--top", "1"]) == 0
    assert re.match(r"colours/test/sky/0.png  sky [\d.]+%\n", capsys.readouterr().out)
    assert main(["summary", *FOLDER[1:-1], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"][-1]["shape"] == [3]
    assert main([*FOLDER, "--resume", "run", "--validation", "0.2", "--epochs", "4"]) == 0
    colours.rename("elsewhere")
    assert main(["evaluate", "run", "--data-dir", "elsewhere"]) == 0
    capsys.readouterr()
    Path("elsewhere/train/ruby").rename("elsewhere/train/red")
    Path("elsewhere/test/ruby").rename("elsewhere/test/red")
    assert "other classes" in fails(capsys, 2, "evaluate", "run", "--data-dir", "elsewhere")


def test_a_damaged_image_among_good_ones(colours: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = colours / "train" / "leaf" / "3.png"
    bad.write_bytes(bad.read_bytes()[:50])
    assert "leaf/3.png" in fails(capsys, 65, *FOLDER, "--out", "run")
    assert not Path("run").exists()
    assert main([*FOLDER, "--skip-broken", "--out", "run"]) == 0
    told = capsys.readouterr().err
    assert "left out colours/train/leaf/3.png" in told
    assert "folder (29 + 12 images, 3 classes)" in told
    (colours / "train" / "leaf" / "4.png").rename(colours / "train" / "sky" / "x.png")
    assert main(["train", "--resume", "run", "--epochs", "4", "--no-plots"]) == 2
    assert "its images are others" in capsys.readouterr().err
    assert "data_dir must be given" in fails(capsys, 2, "train", "--dataset", "folder")


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
    narrow = gather("run", data=(data[2], data[3].astype(np.uint8)), device="cpu")
    np.testing.assert_array_equal(narrow.confusion, found.confusion)
    with pytest.raises(DataError, match="test_labels must be from 0 to 3"):
        gather("run", data=(data[2], data[3] + 1), device="cpu")
    with pytest.raises(TypeError, match=r"data must be \(test_images, test_labels\), got 4 values"):
        gather("run", data=data, device="cpu")
    fit(CONFIG, "wide", data=(*(data[0][..., :5], data[1]), *(data[2][..., :5], data[3])))
    assert "grey or colour squares" in fails(capsys, 2, "predict", "wide", "a.png")


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
        ("mine:leave", "SystemExit: 0"),
        ("builtins:dict", "TypeError: model must be a module such as .* got dict"),
    ):
        assert re.search(words, fails(capsys, 2, "evaluate", "run", "--model-from", given))


def test_a_model_with_more_scores_than_classes(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    text = (
        "nn.Sequential(nn.Conv2d(3, 16, 3), nn.Involution(16), nn.GlobalAvgPool2d(), "
        "nn.Linear(16, 12))"
    )
    Path("wide.py").write_text(f"from invocupy import nn\n\ndef make():\n    return {text}\n")
    own = model_from("wide:make")
    own[3].bias.data += 100 * (np.arange(12) == 11).astype(np.float32)
    fit(CONFIG, "run", model=own)
    flags = "run", "--model-from", "wide:make"
    assert main(["evaluate", *flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["classes"] == [*SHAPES10_CLASSES, "10", "11"]
    assert sum(row[11] for row in found["confusion"]) == found["images"]
    assert main(["evaluate", *flags]) == 0
    images, _ = shapes10(1, 0)
    pytest.importorskip("PIL.Image").fromarray(images[0].transpose(1, 2, 0)).save("a.png")
    assert main(["predict", *flags[:1], "a.png", *flags[1:]]) == 0
    assert "a.png  11 100.0%" in capsys.readouterr().out
    assert main(["explore", *flags[:1], "a.png", *flags[1:]]) == 0
    assert "a.png (11 100%)" in Path("run/explorer.html").read_text()
    assert main(["report", *flags]) == 0


def test_a_report_of_a_model_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    Path("mine.py").write_text(MODEL)
    own = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GlobalAvgPool2d(), nn.Linear(4, 10))
    fit(CONFIG, "run", model=own)
    for command in ("report", "plot"):
        assert main([command, "run", "--model-from", "mine:make"]) == 0
    assert Path("run/report.html").exists()
