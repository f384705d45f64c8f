"""The page of a run."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from invocupy.cli import main
from invocupy.data import SHAPES10_CLASSES
from invocupy.report import Findings, draw, gather, write_page
from invocupy.report.page import render
from invocupy.train import Config, fit

Image = pytest.importorskip("PIL.Image", reason="needs the extra plots")
matplotlib = pytest.importorskip("matplotlib", reason="needs the extra plots")


class Checked(HTMLParser):
    """Reads a page: every tag closed in turn, nothing fetched, pictures in words, texts kept."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[bytes] = []
        self.words: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        values = dict(attrs)
        assert tag not in ("link", "iframe", "object", "img")
        assert not {"src", "href"} & values.keys()
        if tag == "image":
            kind, _, content = values["xlink:href"].partition(",")
            assert kind == "data:image/png;base64"
            self.images.append(base64.b64decode(content))
        else:
            assert values.get("xlink:href", "#").startswith("#")
        if tag == "svg":
            assert values["role"] == "img"
            self.words.append(values["aria-label"])
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
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
    # a confusion matrix; and of each image a row for each of 2 layers: image, 4 groups, colours
    assert len(page.images) == 1 + mistakes + samples + 3 * 2 * (1 + 4 + 1)
    with Image.open(io.BytesIO(page.images[1])) as image:
        first = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(first, found.mistakes.images[0].transpose(1, 2, 0))
    for words in ("short", "batch_size", "one_cycle", np.__version__, *SHAPES10_CLASSES):
        assert words in page.text
    for count in found.confusion[found.confusion > 0]:
        assert str(count) in page.text
    last = found.history[-1]["test_accuracy"]
    for words, part in zip(page.words, (f"{last:.2%}", "Confusion", "is "), strict=False):
        assert part in words


def test_the_page_of_a_run_with_a_validation_share(tmp_path: Path) -> None:
    config = Config(layers=0, epochs=3, limit=40, validation=0.25, device="cpu")
    history = fit(config, tmp_path)
    chosen = gather(tmp_path, device="cpu")
    page = read(render(chosen))
    best = max(row["val_accuracy"] for row in history)
    epoch = next(row["epoch"] for row in history if row["val_accuracy"] == best)
    assert f"The best validation accuracy is {best:.2%}, in epoch {epoch}." in page.words[0]
    assert f"{history[-1]['test_accuracy']:.2%}test accuracy, epoch {epoch}" in page.text
    assert f"{best:.2%}best validation accuracy, epoch {epoch}" in page.text


def test_the_page_is_the_same_every_time_and_for_every_user(found: Findings) -> None:
    page = render(found)
    theirs = {"text.usetex": True, "font.size": 30, "svg.image_inline": False}
    with matplotlib.rc_context(theirs):
        assert render(found) == page
        assert {name: matplotlib.rcParams[name] for name in theirs} == theirs


def test_pictures_have_the_colours_of_the_page_in_light_and_dark(found: Findings) -> None:
    page = render(found)
    for name in ("ink", "soft", "line", "blue", "orange"):
        assert len(re.findall(rf"--{name}:#", page)) == 2
        assert f": var(--{name})" in page
    assert not re.search(r"(fill|stroke): #", page)


HOSTILE = [
    "<script>alert(1)</script>", "$\\frac{1}$", "a$b$c", "'\"><img src=x>", "&lt;", "]]>", "-->",
    "x" * 300, "\N{CJK UNIFIED IDEOGRAPH-7F8A}\n\t\x1b[31m\udcff", "${name}",
]  # fmt: skip


def test_names_that_are_trouble(found: Findings, tmp_path: Path) -> None:
    """Of classes, of the run and in its settings."""
    for name in HOSTILE:
        config = replace(found.config, data_dir=name)
        machine = found.machine | {"devices": {name: name}}
        named = found._replace(name=name, classes=HOSTILE, config=config, machine=machine)
        page = read(render(named))
        assert page.text.count(name) >= 3
        assert any("[$" in words or "$\\frac" in words for words in page.words)
    draw(named, tmp_path)


def test_the_page_of_a_bare_run(bare: Findings, tmp_path: Path) -> None:
    write_page(bare, tmp_path / "a.html")
    page = read((tmp_path / "a.html").read_text())
    assert "<i>&\"'" in page.text  # as text
    assert "Kernels made over" not in page.text
    assert "Not noted" in page.text


def test_the_report_command(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", run]) == 0
    assert capsys.readouterr().out == f"{run}/report.html\n"
    read(Path(run, "report.html").read_text())
    target = str(tmp_path / "other.html")
    assert main(["report", run, "--out", target, "--json", "--involutions", "1"]) == 0
    assert json.loads(capsys.readouterr().out) == {"run": run, "files": [target]}
    assert "blocks 0" not in read(Path(target).read_text()).text
