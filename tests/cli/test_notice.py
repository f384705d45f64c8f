"""Compiling for long is told, once."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pooch  # noqa: F401  (its logger keeps the standard error of its first import)
import pytest

from invocupy import backends
from invocupy.backends.cpu import jit  # which has been imported when a kernel is compiled
from invocupy.backends.notice import note
from invocupy.cli import notice

pytestmark = pytest.mark.usefixtures("own_folder")

# ------------------------------------------------------------------- kernels that are compiled


def test_long_compiling_is_told_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notice, "_PATIENCE", 0.05)
    with notice.compiling_is_told():
        assert backends.on_compile is not None
        backends.on_compile("quick", False)
        backends.on_compile("quick", True)
        time.sleep(0.1)
        assert capsys.readouterr().err == ""
        backends.on_compile("outer", False)
        backends.on_compile("inner", False)
        time.sleep(0.2)
        for name, done in (("inner", True), ("outer", True), ("more", False), ("more", True)):
            backends.on_compile(name, done)
    assert backends.on_compile is note
    with notice.compiling_is_told(False):
        assert backends.on_compile is None
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("invocupy: compiling CPU kernels, on first use only")
    assert re.fullmatch(r"invocupy: compiled 4 kernels in 0 s", last)


def test_compilers_tell_when_they_begin_and_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("INVOCUPY_CACHE_DIR", str(tmp_path))
    jit._place.cache_clear()
    seen: list[tuple[str, bool]] = []
    monkeypatch.setattr(backends, "on_compile", lambda *what: seen.append(what))

    def kernel(x: int) -> int:
        return x + 1

    try:
        assert jit.jit(kernel)(1) == 2
        assert seen == [("kernel", False), ("kernel", True)]
    finally:
        jit._place.cache_clear()
