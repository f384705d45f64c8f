"""The notebooks run from top to bottom, and are shown as pages of the documentation."""

from __future__ import annotations

import json
import re
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest

DOCS = Path(__file__).parents[1] / "docs"
tools: Any = type("tools", (), run_path(str(DOCS / "notebook.py")))
PATHS = sorted((DOCS / "notebooks").glob("*.ipynb"))


def cells(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))["cells"]
    return found


def kinds(outputs: list[dict[str, Any]]) -> list[list[str]]:
    return [sorted(output.get("data", [output["output_type"]])) for output in outputs]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.usefixtures("own_folder")
def test_runs_and_gives_outputs_as_it_holds(path: Path) -> None:
    pytest.importorskip("matplotlib").use("Agg")
    if "pytorch" in path.stem:
        pytest.importorskip("torch")
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    for cell, outputs in zip(code, tools.run(cells(path)), strict=True):
        assert kinds(outputs) == kinds(cell["outputs"]), tools.source(cell)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_begins_with_an_installation_and_keeps_little(path: Path) -> None:
    title, install, *rest = cells(path)
    assert tools.source(title).startswith("# ")
    assert 'find_spec("invocupy") is None' in tools.source(install)
    assert install["outputs"] == []
    text = path.read_text("utf-8")
    assert len(text) < 400_000
    assert not re.search(r"/(home|root|tmp|work)/", text)
    for cell in rest:
        if "image/png" in json.dumps(cell.get("outputs")):
            assert len(cell["metadata"]["alt"]) > 20


def test_a_notebook_as_a_page() -> None:
    outputs = tools.run([
        {"cell_type": "markdown", "source": ["# Title"]},
        {"cell_type": "code", "source": ["a = 1\n", "print(a)\n", "a + 1"]},
        {"cell_type": "code", "source": ["class B:\n", "    def _repr_html_(self):\n",
                                         "        return '<b>b</b>'\n", "B()"]},
    ])  # fmt: skip
    assert kinds(outputs[0]) == [["stream"], ["text/plain"]]
    assert kinds(outputs[1]) == [["text/html", "text/plain"]]
    png = [{"output_type": "display_data", "data": {"image/png": "AAAA"}}]
    code = [
        ("print(1)", outputs[0], {}),
        ("B()", outputs[1], {}),
        ("plot()", png, {"alt": 'a "b"'}),
    ]
    notebook = {"cells": [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        *({"cell_type": "code", "source": [s], "outputs": o, "metadata": m} for s, o, m in code),
    ]}  # fmt: skip
    page = tools.to_markdown(json.dumps(notebook))
    assert page.startswith("# Title\ntext\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n")
    assert "```text\n2\n```" in page
    assert '````{raw} html\n<div class="output"><b>b</b></div>\n````' in page
    assert '<img src="data:image/png;base64,AAAA" alt="a &quot;b&quot;">' in page


def test_a_cell_that_fails_is_an_error() -> None:
    with pytest.raises(ZeroDivisionError):
        tools.run([{"cell_type": "code", "source": ["1 / 0"]}])
