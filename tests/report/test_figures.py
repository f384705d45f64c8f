"""Pictures of a run as files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from invocupy.cli import main
from invocupy.report import Findings, draw, gather, write_page

Image = pytest.importorskip("PIL.Image", reason="needs the extra plots")
pytest.importorskip("matplotlib", reason="needs the extra plots")


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
    found: Findings, bare: Findings, tmp_path: Path
) -> None:
    draw(found, tmp_path)
    mine = {
        "kernels-9.png", "kernels-for-my-talk.png", "kernels-1.png.bak", "kernels-01.png",
        "kernels-2024.png", "my-mistakes.png", "kernels-.png", "Kernels-0.png",
    }  # fmt: skip
    for name in mine:
        Image.new("RGB", (9, 9)).save(tmp_path / name, format="png")
    (tmp_path / "kernels-5.png").mkdir()
    files = draw(bare, tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {path.name for path in files} | mine | {"kernels-5.png"}
    assert "kernels-0.png" not in left


@pytest.mark.parametrize("backend", ["module://no_such.backend", "nonsense", "", "agg"])
def test_the_backend_of_a_notebook_is_not_needed(tmp_path: Path, backend: str) -> None:
    code = (
        "import os, sys\n"
        "from invocupy.report import load_matplotlib\n"
        "m = load_matplotlib()\n"
        "from matplotlib.figure import Figure\n"
        "figure = Figure()\n"
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


@pytest.mark.parametrize("classes", [40, 400])
def test_many_classes_have_a_place(bare: Findings, tmp_path: Path, classes: int) -> None:
    """The memory of a picture does not grow with the classes."""
    counts = np.arange(classes**2).reshape(classes, classes) % 997 == 0
    names = tuple(f"number {i}" for i in range(classes))
    files = draw(bare._replace(classes=names, confusion=counts.astype(int)), tmp_path)
    with Image.open(files[1]) as image:
        assert 1000 < max(image.size) < 3000


def test_pictures_of_a_bare_run(bare: Findings, tmp_path: Path) -> None:
    files = draw(bare, tmp_path)
    assert [path.name for path in files] == ["curves.png", "confusion.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="bytes as names of files")
def test_a_name_that_is_no_text(run: str, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"r\xff")
    shutil.copytree(run, folder)
    shown = gather(folder, device="cpu")
    assert shown.name == "r\N{REPLACEMENT CHARACTER}"
    write_page(shown, tmp_path / "page.html")
    draw(shown, tmp_path)


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
