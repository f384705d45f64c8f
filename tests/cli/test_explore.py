"""``invocupy explore``: a page about image files, and one line where there is nothing to show."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from command import fails

from invocupy.cli import main
from invocupy.data import shapes10
from invocupy.train import Config, fit

Image = pytest.importorskip("PIL.Image", reason="needs the extra plots")

CONFIG = Config(model="small", width=32, epochs=1, batch_size=20, limit=20, device="cpu")
IMAGES = shapes10(2, 0)[0]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of runs by their spatial layer."""
    folder = tmp_path_factory.mktemp("runs")
    for spatial in ("involution", "depthwise"):
        config = Config(**{**vars(CONFIG), "spatial": spatial})
        fit(config, folder / spatial)
    return {path.name: str(path) for path in folder.iterdir()}


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    paths = [str(tmp_path / f"{number}.png") for number in range(len(IMAGES))]
    for path, image in zip(paths, IMAGES, strict=True):
        Image.fromarray(image.transpose(1, 2, 0)).save(path)
    return paths


def inside(page: str | Path) -> Any:
    """The data of a page."""
    text = Path(page).read_text("utf-8")
    return json.loads(text.partition('id="explorer-data">')[2].partition("</script>")[0])


def test_the_page_has_the_images_and_all_layers(
    runs: dict[str, str], images: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs["involution"]
    assert main(["explore", run, *images, "--device", "cpu"]) == 0
    assert capsys.readouterr().out == f"{run}/explorer.html\n"
    found = inside(f"{run}/explorer.html")
    assert [len(base64.b64decode(image["pixels"])) for image in found["images"]] == [3072] * 2
    assert base64.b64decode(found["images"][1]["pixels"]) == IMAGES[1].transpose(1, 2, 0).tobytes()
    assert found["images"][0]["title"].startswith("0.png (")
    assert len(found["layers"]) == 7
    assert all(layer["mean"] for layer in found["layers"])


def test_some_layers_beside_those_of_another_run(
    runs: dict[str, str], images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "a.html")
    flags = ["--out", out, "--involutions", "3", "1", "--convolution", runs["depthwise"], "--json"]
    assert main(["explore", runs["involution"], images[0], *flags]) == 0
    assert json.loads(capsys.readouterr().out) == {"run": runs["involution"], "files": [out]}
    layers = inside(out)["layers"]
    assert [layer["name"] for layer in layers] == ["blocks.2.spatial", "blocks.0.spatial"]
    assert not any(layer["mean"] for layer in layers)


def test_bad_files_are_one_line_and_the_others_are_shown(
    runs: dict[str, str], images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, out = tmp_path / "b\nad.png", tmp_path / "a.html"
    bad.write_bytes(b"no image")
    flags = ["--out", str(out)]
    assert main(["explore", runs["involution"], str(bad), *images, *flags]) == 65
    assert capsys.readouterr().err.count("b?ad.png cannot be read") == 1
    assert len(inside(out)["images"]) == 2
    out.unlink()
    assert "cannot be read" in fails(capsys, 65, "explore", runs["involution"], str(bad), *flags)
    assert not out.exists()


def test_what_cannot_be_explored_is_one_line(
    runs: dict[str, str], images: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = fails(capsys, 65, "explore", runs["depthwise"], *images)
    assert f"{runs['depthwise']} cannot be explored: its network has no involution" in line
    line = fails(capsys, 2, "explore", runs["involution"], *images, "--involutions", "7")
    assert "involutions must be numbers below 7" in line
    line = fails(capsys, 2, "explore", runs["involution"], *images, "--convolution",
                 runs["involution"])  # fmt: skip
    assert "convolution must be a run" in line
