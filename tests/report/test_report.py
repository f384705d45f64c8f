"""Looking at a finished run: predictions for files, pictures, the page."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from invocupy import nn
from invocupy.checkpoint import CheckpointError
from invocupy.cli import main
from invocupy.data import SHAPES10_CLASSES, SHAPES10_MEAN, SHAPES10_STD, DataError, read_image
from invocupy.extras import MissingExtra, require
from invocupy.models import SimpleModel
from invocupy.report import Findings, draw, gather, heat_maps, write_page
from invocupy.report.findings import involution_layers
from invocupy.report.page import render
from invocupy.report.png import colours, encode
from invocupy.report.svg import chart, ticks
from invocupy.train import Config, ConfigError, evaluate, fit, load_data, load_run, predict

Image = pytest.importorskip("PIL.Image", reason="needs the extra plots")
pytest.importorskip("matplotlib", reason="needs the extra plots")

CONFIG = Config(layers=2, epochs=2, batch_size=20, limit=60, device="cpu")
STYLE: dict[str, Any] = {"mean": SHAPES10_MEAN, "std": SHAPES10_STD}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a short run."""
    folder = tmp_path_factory.mktemp("runs") / "short"
    fit(CONFIG, folder)
    return str(folder)


@pytest.fixture(scope="module")
def found(run: str) -> Findings:
    """What there is to see of it."""
    return gather(run, device="cpu")


# ---------------------------------------------------------------------------- image files


def save(path: Path, pixels: Any, **options: Any) -> str:
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)
    return str(path)


def test_files_are_read_as_they_look(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (32, 32, 3))
    whole = read_image(save(tmp_path / "a.png", pixels))
    assert whole.dtype == np.uint8
    assert whole.flags.c_contiguous
    np.testing.assert_array_equal(whole, pixels.transpose(2, 0, 1))
    # four pixels become one, and what lies beside the middle square is cut off
    large = np.repeat(np.repeat(pixels, 2, 0), 2, 1)
    wide = np.concatenate([np.zeros((64, 7, 3)), large, np.zeros((64, 7, 3))], axis=1)
    np.testing.assert_array_equal(read_image(save(tmp_path / "b.png", wide)), whole)
    clear = np.concatenate([pixels, np.zeros((32, 32, 1))], axis=2)
    assert (read_image(save(tmp_path / "c.png", clear)) == 255).all()
    grey = read_image(save(tmp_path / "d.png", pixels[..., 0]))
    np.testing.assert_array_equal(grey, np.stack([pixels[..., 0]] * 3))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = read_image(save(tmp_path / "e.png", pixels, exif=exif))
    np.testing.assert_array_equal(turned, whole[:, ::-1, ::-1])
    assert read_image(save(tmp_path / "f.png", pixels[:5, :9])).shape == (3, 32, 32)


def test_files_that_are_no_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = save(tmp_path / "a.png", np.zeros((40, 40, 3)))
    cut, text = tmp_path / "cut.png", tmp_path / "text.png"
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(
        noise, "png"
    )
    cut.write_bytes(noise.getvalue()[:-2000])
    text.write_text("no image")
    for path in (cut, text, tmp_path, tmp_path / "none.png"):
        with pytest.raises(DataError, match=f"{path} cannot be read as an image") as caught:
            read_image(path)
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for pixels in (999, 500):  # a warning, then an error of Pillow's
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
        with pytest.raises(DataError, match="exceeds limit"):
            read_image(good)


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


@pytest.mark.parametrize(
    ("module", "command", "words"),
    [
        ("PIL.Image", "predict", "Pillow is not installed: pip install 'invocupy[plots]'"),
        ("matplotlib", "plot", "matplotlib is not installed: pip install 'invocupy[plots]'"),
    ],
)
def test_a_missing_package_names_its_extra(
    run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    module: str, command: str, words: str,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, module, None)
    assert main([command, run, *(["a.png"] if command == "predict" else [])]) == 69
    assert capsys.readouterr().err == f"invocupy: {words}\n"


# ---------------------------------------------------------------------------- findings


def test_a_package_that_cannot_be_loaded_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "of_another_numpy.py").write_text("raise ImportError('built for NumPy 1')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtra, match=r"Other cannot be loaded \(built for NumPy 1\): pip"):
        require("of_another_numpy", "Other", "plots")


@pytest.mark.parametrize("version", ["'unknown'", "None", "2.11", "'10.0.dev1'", "'2.10'"])
def test_a_version_that_cannot_be_compared_or_is_new_is_taken(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "of_some_version.py").write_text(f"__version__ = {version}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "of_some_version", raising=False)
    assert require("of_some_version", "Some", "plots", "2.10").__name__ == "of_some_version"


def test_findings_agree_with_the_evaluation(run: str, found: Findings) -> None:
    _, model, _ = load_run(run)
    images, labels = load_data(CONFIG, train=False)
    result = evaluate(model, images, labels, **STYLE)
    np.testing.assert_array_equal(found.confusion, result.confusion)
    assert found.accuracy == result.accuracy
    assert found.images == 60
    assert {*found.samples.labels[:10]} == {*range(10)}
    wrong = found.mistakes.probabilities.argmax(axis=1) != found.mistakes.labels
    assert wrong.all()
    assert len(wrong) == min(24, 60 - round(60 * found.accuracy))
    certainty = found.mistakes.probabilities.max(axis=1)
    assert (np.diff(certainty) <= 0).all()
    assert [heat.layer for heat in found.maps] == ["blocks.0.involution", "blocks.1.involution"]
    assert found.machine["packages"]["numpy"] == np.__version__


def test_findings_of_a_run_stopped_before_its_end(tmp_path: Path) -> None:
    def stop(now: Any) -> None:
        if now.epoch == 1:
            raise RuntimeError("no space left")

    with pytest.raises(RuntimeError, match="no space left"):
        fit(replace(CONFIG, layers=0, limit=20), tmp_path, progress=stop)
    with pytest.raises(CheckpointError, match="no whole epoch to show: resume the run"):
        gather(tmp_path, which="last", device="cpu")
    early = (tmp_path / "last.safetensors").read_bytes()
    fit(replace(CONFIG, layers=0, limit=20, epochs=1), tmp_path, resume=True)
    (tmp_path / "last.safetensors").write_bytes(early)  # as if only the best had been written
    assert [row["epoch"] for row in gather(tmp_path, device="cpu").history] == [1]


@pytest.mark.skipif(sys.platform != "linux", reason="bytes as names of files")
def test_a_name_that_is_no_text(run: str, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"r\xff")
    shutil.copytree(run, folder)
    shown = gather(folder, device="cpu")
    assert shown.name == "r\N{REPLACEMENT CHARACTER}"
    write_page(shown, tmp_path / "page.html")
    draw(shown, tmp_path)


def test_heat_maps_are_sums_over_taps() -> None:
    """A generator that only has a bias makes the same kernel everywhere."""
    model = SimpleModel(num_layers=1, rng=0)
    layer = model.blocks[0].involution
    layer.span.weight.data = np.zeros_like(layer.span.weight.data)
    layer.span.bias.data = np.arange(36, dtype=np.float32)  # 4 groups of 9 taps
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    (heat,) = heat_maps(model, images, ["blocks.0.involution"], **STYLE)
    assert heat.values.shape == (2, 4, 32, 32)
    for group in range(4):
        assert (heat.values[:, group] == sum(range(9 * group, 9 * group + 9))).all()
    assert layer.fused == "auto"
    assert "forward" not in vars(layer)
    # and of a generator that sees the image, at one pixel
    layer.span.weight.data = np.ones_like(layer.span.weight.data)
    (heat,) = heat_maps(model, images, ["blocks.0.involution"], **STYLE)
    assert np.ptp(heat.values[0, 0]) > 0


def test_layers_to_map() -> None:
    model = nn.Sequential(*(nn.Involution(16) for _ in range(9)))
    assert involution_layers(model) == ["0", "3", "5", "8"]
    assert involution_layers(model, [8, 1]) == ["8", "1"]
    assert involution_layers(nn.Sequential(nn.ReLU())) == []
    with pytest.raises(ConfigError, match="involutions must be numbers below 9"):
        involution_layers(model, [9])


# ---------------------------------------------------------------------------- pictures


def test_pictures(found: Findings, tmp_path: Path) -> None:
    files = draw(found, tmp_path)
    names = ["curves", "confusion", "mistakes", "kernels-0", "kernels-1", "kernels-2"]
    assert [path.name for path in files] == [f"{name}.png" for name in names]
    assert {*tmp_path.iterdir()} == {*files}
    for path in files:
        with Image.open(path) as image:
            assert min(image.size) > 250
            assert len(image.convert("RGB").getcolors(10**6)) > 20  # something is drawn


def test_pictures_of_earlier_go_and_files_of_the_users_stay(
    found: Findings, tmp_path: Path
) -> None:
    draw(found, tmp_path)
    mine = {
        "kernels-9.png", "kernels-for-my-talk.png", "kernels-1.png.bak", "kernels-01.png",
        "kernels-2024.png", "my-mistakes.png", "kernels-.png", "Kernels-0.png",
    }  # fmt: skip
    for name in mine:
        Image.new("RGB", (9, 9)).save(tmp_path / name, format="png")
    (tmp_path / "kernels-5.png").mkdir()
    files = draw(bare(found), tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {path.name for path in files} | mine | {"kernels-5.png"}
    assert "kernels-0.png" not in left


@pytest.mark.parametrize("backend", ["module://no_such.backend", "nonsense", "", "agg"])
def test_the_backend_of_a_notebook_is_not_needed(tmp_path: Path, backend: str) -> None:
    code = (
        "import os, sys\n"
        "from invocupy.report import load_matplotlib\n"
        "from invocupy.report.figures import _figure\n"
        "m = load_matplotlib()\n"
        "figure = _figure(2, 2)\n"
        "figure.subplots().plot([1, 2])\n"
        "figure.savefig('a.png')\n"
        "assert os.environ['MPLBACKEND'] == sys.argv[1]\n"
        "print(m.rcParams['backend'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, backend], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "MPLBACKEND": backend},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.png").exists()
    assert (done.stdout == "agg\n") or backend != "agg"


def bare(found: Findings) -> Findings:
    """One epoch without a test loss, no involution, no mistake; a name that is trouble."""
    row = {**found.history[0], "test_loss": None}
    nothing = found.mistakes.take(slice(0, 0))
    return found._replace(history=[row], mistakes=nothing, maps=[], machine={}, name="<i>&\"'")


def test_pictures_of_a_bare_run(found: Findings, tmp_path: Path) -> None:
    files = draw(bare(found), tmp_path)
    assert [path.name for path in files] == ["curves.png", "confusion.png"]


def test_the_plot_command(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", run, "--involutions", "1", "--json", "--device", "cpu"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [Path(path).name for path in result["files"]][-1] == "kernels-2.png"
    assert all(Path(path).parent == Path(run) for path in result["files"])
    assert main(["plot", run, "--involutions", "2"]) == 2
    assert "numbers below 2" in capsys.readouterr().err
    assert main(["plot", "no/run"]) == 65


def test_training_writes_pictures_if_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "--layers", "0", "--epochs", "1", "--limit", "20", "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "a")]) == 0
    assert "pictures: curves.png confusion.png" in capsys.readouterr().err
    assert (tmp_path / "a" / "curves.png").stat().st_size > 1000
    assert main([*command, "--no-plots", "--out", str(tmp_path / "b")]) == 0
    assert not list((tmp_path / "b").glob("*.png"))
    monkeypatch.setattr("invocupy.cli.train.find_spec", lambda name: None)
    assert main([*command, "--out", str(tmp_path / "c")]) == 0
    assert not list((tmp_path / "c").glob("*.png"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([*command, "--plots", "--out", str(tmp_path / "d")]) == 69
    assert not (tmp_path / "d").exists()


# ---------------------------------------------------------------------------- the page


class Checked(HTMLParser):
    """Reads a page: every tag closed in turn, nothing fetched, texts kept."""

    VOID = frozenset({"meta", "img", "path", "circle"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[bytes] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        values = dict(attrs)
        assert tag not in ("script", "link", "iframe", "object")
        if tag == "img":
            kind, _, content = values["src"].partition(",")
            assert kind == "data:image/png;base64"
            assert values["alt"]
            self.images.append(base64.b64decode(content))
        else:
            assert not {"src", "href", "xlink:href"} & values.keys()
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: str) -> Checked:
    parser = Checked()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    assert "://" not in page
    assert not re.search(r"url\(|@import", page)
    return parser


def test_the_page_is_whole_and_needs_nothing(found: Findings) -> None:
    page = read(render(found))
    samples, mistakes = len(found.samples.labels), len(found.mistakes.labels)
    assert len(page.images) == mistakes + samples + 3 * (1 + 2 * 4)
    with Image.open(io.BytesIO(page.images[0])) as image:
        first = np.asarray(image)
    np.testing.assert_array_equal(first, found.mistakes.images[0].transpose(1, 2, 0))
    for words in ("short", "batch_size", "one_cycle", np.__version__, *SHAPES10_CLASSES):
        assert words in page.text
    for count in found.confusion[found.confusion > 0]:
        assert str(count) in page.text


def test_the_page_of_a_bare_run(found: Findings, tmp_path: Path) -> None:
    write_page(bare(found), tmp_path / "a.html")
    page = read((tmp_path / "a.html").read_text())
    assert "<i>&\"'" in page.text  # as text
    assert "Generated kernels" not in page.text
    assert "Not noted" in page.text


def test_the_report_command(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # not needed
    assert main(["report", run]) == 0
    assert capsys.readouterr().out == f"{run}/report.html\n"
    read(Path(run, "report.html").read_text())
    target = str(tmp_path / "other.html")
    assert main(["report", run, "--out", target, "--json", "--involutions", "1"]) == 0
    assert json.loads(capsys.readouterr().out) == {"run": run, "files": [target]}
    assert "blocks 0" not in read(Path(target).read_text()).text


def test_png_files_are_what_pillow_reads() -> None:
    rng = np.random.default_rng(0)
    for shape in ((1, 1, 3), (5, 7, 3), (64, 32, 3)):
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        with Image.open(io.BytesIO(encode(pixels))) as image:
            np.testing.assert_array_equal(np.asarray(image), pixels)


def test_colours_rise_in_lightness_and_know_no_nan() -> None:
    image = colours(np.array([[*np.linspace(0, 1, 50), np.nan, 5.0, -5.0]]), 0, 1)[0]
    lightness = image[:50] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > 0).all()
    np.testing.assert_array_equal(image[50:], image[[0, 49, 0]])
    assert colours(np.ones((2, 2)), 1, 1).shape == (2, 2, 3)


def test_charts() -> None:
    assert ticks(0, 3) == [0, 1, 2, 3]
    assert ticks(0.3, 2.3) == [0.5, 1.0, 1.5, 2.0]
    assert ticks(5, 5) == [5]
    broken = chart("x", [1, 2, 3, 4], [("train", [1.0, None, float("nan"), 2.0])])
    assert broken.count("<circle") == 2
    assert re.search(r'd="M[\d. ]+M[\d. ]+"', broken)  # two pieces
    assert "nan" not in chart("x", [1], [("train", [None])], text=str)
    assert chart("x", range(1, 100), [("train", [1.0] * 99)]).count("<circle") == 0


def test_settings_of_the_machine_do_not_matter_for_a_look(run: str) -> None:
    """A run that was trained elsewhere: its device and data folder are not asked for."""
    config = replace(CONFIG, device="cuda:7", data_dir="/gone")
    path = Path(run, "elsewhere")
    fit(replace(CONFIG, epochs=1, layers=0), path)
    from invocupy import checkpoint

    for which in ("best", "last"):
        arrays, info = checkpoint.load(path / f"{which}.safetensors")
        info["config"] |= {"device": config.device, "data_dir": config.data_dir}
        checkpoint.save(path / f"{which}.safetensors", arrays, info)
    assert gather(path, device="cpu").images == 60
