"""README: its figures are those of the results, its code runs, and an index can show it."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def script(name: str) -> Any:
    """A module of the folder of the documentation."""
    spec = spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text() -> str:
    return README.read_text(encoding="utf-8")


def test_figures_are_those_of_the_results() -> None:
    writer = script("write_readme")
    assert text() == writer.filled(text()), "run python docs/write_readme.py"
    assert sorted(re.findall(r"results: (\w+)", text())) == sorted(writer.BLOCKS)
    assert writer.filled(text().replace("GB", "TB")) != text().replace("GB", "TB")


def test_the_chart_shows_the_results() -> None:
    pytest.importorskip("matplotlib")
    charts = script("draw_charts")
    words = charts.values(charts.speed(), "ms")
    assert re.fullmatch(r"invocupy: \d+ ms; PyTorch, .*: [\d,]+ ms", words)
    for theme in charts.THEMES:
        drawn = (ROOT / "docs" / "_static" / f"speed-{theme}.svg").read_text(encoding="utf-8")
        assert words in drawn, "run python docs/draw_charts.py"


def test_no_figure_of_speed_or_accuracy_stands_outside_the_blocks() -> None:
    writer = script("write_readme")
    rest = re.sub(r"```.*?```", "", writer.BLOCK.sub("", text()), flags=re.DOTALL)
    found = re.findall(r"\b\d[\d.,]*(?:x\b(?!\d)| %| GB| images/s)", rest)
    assert found == ["70 %"]  # which .ci/run checks


def test_sizes() -> None:
    assert len(text().splitlines()) <= 120
    assert len((ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()) <= 60


def test_code_runs_as_pasted(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    quick, rest = re.findall(r"```python\n(.*?)```", text(), re.DOTALL)
    command = [sys.executable, "-W", "error", "-c", f"{quick}\n{rest}"]
    subprocess.run(command, cwd=tmp_path, timeout=250, check=True)
    from matplotlib.image import imread

    before, after = np.split(imread(tmp_path / "smooth.png")[..., :3], 2, axis=1)
    assert before.shape == (600, 512, 3)
    rough = [abs(np.diff(half[:100, 300:500], axis=0)).mean() for half in (before, after)]
    assert rough[1] < 0.6 * rough[0]  # the sky is smooth
    edges = [abs(np.diff(half, axis=1)).max() for half in (before, after)]
    assert edges[1] > 0.7 * edges[0]


def test_its_links_and_pictures_exist() -> None:
    named = re.findall(r"\]\((?!\w+:)([^)#]+)|src(?:set)?=\"([^\"]+)", text())
    paths = [link or source for link, source in named]
    assert len(paths) > 15
    assert [path for path in paths if not (ROOT / path).is_file()] == []
    for path, place in re.findall(r"\]\((?!\w+:)([^)#]+)#([^)]+)\)", text()):
        heads = re.findall(r"^#+ (.*)$", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
        assert place in {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads}


def test_an_index_gets_no_link_into_a_repository_without_address() -> None:
    index = script("index_readme")
    shown = index.for_index(text(), "https://repository.invalid/invocupy")
    assert re.findall(r"docs/[\w./-]+\.(?:md|png|svg)", shown) == []
    assert "<picture>" not in shown
    assert "![" not in shown
    assert not re.search(r"\((how|details|all|benchmarks|GPU)\)", shown)
    assert "](https://arxiv.org/" in shown
    assert "```python" in shown


def test_an_index_gets_links_to_the_address_once_it_is_decided() -> None:
    index = script("index_readme")
    shown = index.for_index(text(), "https://example.org/invocupy")
    targets = re.findall(r"\]\(([^)]+)\)|src(?:set)?=\"([^\"]+)", shown)
    assert len(targets) > 15
    assert all(one.startswith("https://") for pair in targets for one in pair if one)
    assert 'src="https://example.org/invocupy/raw/HEAD/docs/_static/kernels-light.png"' in shown
    assert "(https://example.org/invocupy/blob/HEAD/docs/tutorial.md)" in shown
