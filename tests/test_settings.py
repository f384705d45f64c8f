"""What environment variables say: where kernels are kept, and how many threads there shall be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from invocupy import settings
from invocupy.backends.cpu import jit, threads


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"INVOCUPY_CACHE_DIR": "~/kernels"}, "{home}/kernels"),
        ({"INVOCUPY_CACHE_DIR": "near/kernels"}, "{cwd}/near/kernels"),
        ({"INVOCUPY_CACHE_DIR": "~no_such_user/kernels"}, "None"),
        ({"XDG_CACHE_HOME": "caches"}, "{home}/.cache/invocupy"),
        ({"XDG_CACHE_HOME": "~/caches"}, "{home}/.cache/invocupy"),
        ({"XDG_CACHE_HOME": ""}, "{home}/.cache/invocupy"),
        ({"XDG_CACHE_HOME": "{cwd}/caches"}, "{cwd}/caches/invocupy"),
        ({"INVOCUPY_CACHE_DIR": "~/kernels", "XDG_CACHE_HOME": "caches"}, "{home}/kernels"),
    ],
)
def test_where_kernels_are_kept(environment, expected, tmp_path):
    home, cwd = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    cwd.mkdir()
    code = "from invocupy.backends.cpu.jit import cache_directory; print(cache_directory())"
    given = {"HOME": str(home), "INVOCUPY_CACHE_DIR": None, "XDG_CACHE_HOME": None, **environment}
    given = {key: value and value.format(cwd=cwd) for key, value in given.items()}
    where = expected.format(home=home, cwd=cwd)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={key: value for key, value in {**os.environ, **given}.items() if value is not None},
        cwd=cwd, capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == where
    allowed = [] if not where.startswith(str(cwd)) else [Path(where).relative_to(cwd).parts[0]]
    assert [path.name for path in cwd.iterdir()] == allowed


def test_names_that_no_path_can_have(monkeypatch):
    monkeypatch.setattr(os, "environ", {"INVOCUPY_CACHE_DIR": "a\0b"})
    assert jit._place.__wrapped__()[0] is None
    assert "NUL" in jit._place.__wrapped__()[1]


@pytest.mark.parametrize(
    ("given", "number"),
    [("", None), ("  ", None), ("1", 1), (" 4 ", 4), ("007", 7), ("100000", 100000)],
)
def test_number_of_threads(given, number, monkeypatch):
    monkeypatch.setenv("INVOCUPY_NUM_THREADS", given)
    assert settings.number_of_threads() == number


@pytest.mark.parametrize(
    "given", ["two", "0", "00", "-1", "+1", "1.0", "1e3", "1_000", "４", "1 2", "auto", "9" * 5000]
)
def test_numbers_of_threads_that_are_none(given, monkeypatch):
    monkeypatch.setattr(threads, "_default", threads._default.__wrapped__)
    monkeypatch.setattr(threads, "_limit", threads._limit.__wrapped__)
    monkeypatch.setenv("INVOCUPY_NUM_THREADS", given)
    for use in (settings.number_of_threads, threads.get_num_threads, threads.is_set):
        with pytest.raises(settings.SettingError, match="INVOCUPY_NUM_THREADS must be an integer"):
            use()


def test_numbers_of_threads_of_numpy():
    try:
        for number in (np.int64(2), np.uint8(2)):
            threads.set_num_threads(number)
            assert type(threads.get_num_threads()) is int
        for wrong in (np.True_, np.float64(2), np.int64(0), "2", 2.0):
            with pytest.raises(ValueError, match="number of threads must be an integer >= 1"):
                threads.set_num_threads(wrong)
    finally:
        threads.set_num_threads(None)
