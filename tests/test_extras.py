"""Packages that only some commands need: missing, unloadable, of any version."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from invocupy.cli import main
from invocupy.extras import MissingExtra, require
from invocupy.train import Config, fit


@pytest.mark.parametrize(
    ("module", "command", "words"),
    [
        ("PIL.Image", "predict", "Pillow is not installed: pip install 'invocupy[plots]'"),
        ("matplotlib", "plot", "matplotlib is not installed: pip install 'invocupy[plots]'"),
        ("matplotlib", "report", "matplotlib is not installed: pip install 'invocupy[plots]'"),
    ],
)
def test_a_missing_package_names_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    module: str, command: str, words: str,
) -> None:  # fmt: skip
    run = str(tmp_path / "run")
    fit(Config(layers=0, epochs=1, limit=10, batch_size=10, device="cpu"), run)
    monkeypatch.setitem(sys.modules, module, None)
    assert main([command, run, *(["a.png"] if command == "predict" else [])]) == 69
    assert capsys.readouterr().err == f"invocupy: {words}\n"


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
