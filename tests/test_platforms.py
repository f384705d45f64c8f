"""What other systems lack is taken away: the package works by their rules, to the same bits."""

from __future__ import annotations

import json
import os
import re
import sys
import tomllib
from pathlib import Path

import psutil
import pytest
from bare import bits
from processes import script
from small_runs import HEAD, content

from invocupy import atomic, settings
from invocupy.backends.cpu import jit
from invocupy.distributed import faults
from invocupy.train import fit

ROOT = Path(__file__).parents[1]


def test_the_package_works_as_it_would_on_windows(tmp_path: Path) -> None:
    """Without fork, pthreads, /proc, owners, flock, and with files that cannot be replaced."""
    body = """
    import sys
    sys.path.insert(0, sys.argv[1])
    import bare
    bare.like_windows()

    import importlib, json, os, pkgutil
    from dataclasses import replace
    from pathlib import Path
    import invocupy
    for found in pkgutil.walk_packages(invocupy.__path__, "invocupy."):
        if not found.name.startswith("invocupy.interop.") and "__main__" not in found.name:
            importlib.import_module(found.name)

    from small_runs import HEAD
    from invocupy.backends.cpu import jit, pool, threads
    from invocupy.cli import main
    from invocupy.train import ConfigError, fit
    from invocupy.train.lock import locked

    several = threads.get_num_threads()
    found = []
    for number in (1, 3):
        threads.set_num_threads(number)
        found.append(bare.bits())
    threads.set_num_threads(None)
    run = Path(sys.argv[2])
    fit(replace(HEAD, epochs=1), run)
    with locked(run):
        try:
            fit(HEAD, run, resume=True)
        except ConfigError as error:
            found.append(str(error).partition(" is in use by ")[2].partition(" on ")[0])
    fit(HEAD, run, resume=True)
    invocupy.release_memory()
    code = main(["evaluate", "no/such/run"])
    print(json.dumps([*found, os.getpid(), pool._workers, jit.why_not_kept(), code]))
    """
    cache = jit.cache_directory()
    assert cache is not None
    out = script(
        body, arguments=[Path(__file__).parent, tmp_path / "run"], noisy=True, cwd=tmp_path,
        HOME=str(cache.parent), INVOCUPY_CACHE_DIR=str(cache), INVOCUPY_NUM_THREADS=None,
    )  # fmt: skip
    one, three, holder, pid, workers, why, code = json.loads(out.splitlines()[-1])
    assert one == three == bits()
    assert workers == 2
    assert holder == f"process {pid}"
    assert why == ""
    assert code == 65
    fit(HEAD, tmp_path / "here")
    assert content(tmp_path / "run") == content(tmp_path / "here")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        path.name for path in (tmp_path / "here").iterdir()
    }


@pytest.mark.parametrize("inside", [True, False])
def test_where_a_mode_says_nothing_the_users_folder_is_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("INVOCUPY_CACHE_DIR", str(tmp_path / ("home" if inside else "") / "kernels"))
    monkeypatch.delattr(os, "getuid")
    place, why = jit._place.__wrapped__()
    assert (place is not None) == inside
    assert ("must be in this user's folder" in why) != inside


@pytest.mark.parametrize(
    ("system", "variables", "expected"),
    [
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/invocupy"),
        ("win32", {}, "/home/me/.cache/invocupy"),
        ("darwin", {}, "/home/me/Library/Caches/invocupy"),
        ("darwin", {"XDG_CACHE_HOME": "/x"}, "/x/invocupy"),
        ("linux", {}, "/home/me/.cache/invocupy"),
        ("linux", {"XDG_CACHE_HOME": "/x", "LOCALAPPDATA": "/local"}, "/x/invocupy"),
    ],
)
def test_caches_are_where_the_system_has_them(
    monkeypatch: pytest.MonkeyPatch, system: str, variables: dict[str, str], expected: str
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(os, "environ", {"HOME": "/home/me"} | variables)
    assert str(settings.cache_root()) == expected


@pytest.mark.parametrize(("pauses", "refused"), [(2, 2), (2, 3), (0, 1)])
def test_a_file_that_others_have_open_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: int, refused: int
) -> None:
    tries, replace = [], Path.replace

    def once_free(self: Path, target: Path) -> Path:
        tries.append(target)
        if len(tries) <= refused:
            raise PermissionError(13, "in use", str(self))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", once_free)
    monkeypatch.setattr(atomic, "_PAUSES", (0.0,) * pauses)
    file = tmp_path / "state"
    file.write_bytes(b"old")
    if refused <= pauses:
        atomic.write_atomically(file, b"new")
    else:
        with pytest.raises(PermissionError, match="state"):
            atomic.write_atomically(file, b"new")
    assert len(tries) == min(refused, pauses) + 1
    assert file.read_bytes() == (b"new" if refused <= pauses else b"old")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_launcher_is_gone_although_its_number_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    before = faults._launcher()
    assert before == faults._launcher()
    monkeypatch.setattr(psutil, "pid_exists", lambda number: False)
    assert before != faults._launcher()


def test_numba_is_allowed_up_to_the_version_that_is_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (allowed,) = (text for text in project["dependencies"] if text.startswith("numba"))
    locked = re.search(r"^numba==(\d+)\.(\d+)", (ROOT / ".ci/locked.txt").read_text(), re.M)
    assert locked
    assert allowed.endswith(f",<{locked[1]}.{int(locked[2]) + 1}")
