"""Downloads of CIFAR-10: once, checked, and what to do where they fail."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pooch  # noqa: F401  (its logger keeps the standard error of its first import)
import pytest
from cifar_files import (
    check_content,
    make_archive,
    make_files,
    official,
)

from invocupy import data
from invocupy.data import DataError, DownloadError, cifar


class Server:
    """A loopback web server that gives the archive in the way asked for."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.answers: list[str] = []  # one a request; the last is repeated
        self.requests = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests += 1
                answer = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                body = outer.content
                if answer in ("other", "endless"):
                    body = b"<html>please log in</html>" * (1 if answer == "other" else 10**5)
                self.send_response(int(answer) if answer.isdigit() else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # the other side may have had enough
                    self.wfile.write(body[: len(body) // 2] if answer == "short" else body)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def server(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    path = make_archive(tmp_path / "served.tar.gz", official(make_files()))
    server = Server(path.read_bytes())
    address = f"http://127.0.0.1:{server.server.server_port}/{cifar.TEN.archive}"
    digest = hashlib.sha256(server.content).hexdigest()
    served = cifar.TEN._replace(url=address, size=len(server.content), sha256=digest)
    monkeypatch.setattr(cifar, "TEN", served)
    monkeypatch.setattr(cifar, "_RETRIES", 0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield server
    server.close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INVOCUPY_DATA", str(tmp_path / "own"))
    return tmp_path / "own"


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_downloads_once(server: Server, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers = ["200"]
    check_content(None, make_files())
    assert server.requests == 1
    assert names_in(cache) == [cifar.TEN.archive]
    assert capsys.readouterr().out == ""


def test_retries_and_mends_its_own_cache(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # without INVOCUPY_DATA the user's cache folder is used, which is ours to repair
    monkeypatch.setattr(cifar, "_RETRIES", 1)
    server.answers = ["500", "200"]
    check_content(None, make_files())
    assert server.requests == 2
    (archive,) = (tmp_path / "cache").rglob(cifar.TEN.archive)
    archive.write_bytes(archive.read_bytes()[:-1])
    check_content(None, make_files())
    assert server.requests == 3
    assert names_in(archive.parent) == [cifar.TEN.archive]


def test_a_users_damaged_archive_is_not_replaced(server: Server, cache: Path) -> None:
    server.answers = ["200"]
    cache.mkdir()
    (cache / cifar.TEN.archive).write_bytes(b"mine")
    with pytest.raises(DataError):
        data.cifar10()
    assert (cache / cifar.TEN.archive).read_bytes() == b"mine"
    assert server.requests == 0


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("404", DownloadError),
        ("500", DownloadError),
        ("short", DownloadError),
        ("other", DataError),
        ("endless", DataError),
        ("refused", DownloadError),
        ("unwritable", DownloadError),
    ],
)
def test_failed_downloads_say_what_to_do(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, answer: str, error: type
) -> None:
    server.answers = [answer]
    if answer == "refused":
        with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as gone:
            port = gone.server_port
        url = f"http://127.0.0.1:{port}/{cifar.TEN.archive}"
        monkeypatch.setattr(cifar, "TEN", cifar.TEN._replace(url=url))
    if answer == "unwritable":  # a file where the folder should be
        cache.parent.joinpath("file").write_bytes(b"")
        cache = cache.parent / "file" / "own"
        monkeypatch.setenv("INVOCUPY_DATA", str(cache))
    with pytest.raises(error) as caught:
        data.cifar10()
    message = str(caught.value)
    assert "\n" not in message
    for word in (
        "more than" if answer == "endless" else "",
        cifar.TEN.url,
        str(cifar.TEN.size),
        cifar.TEN.sha256,
        str(cache / cifar.TEN.archive),
        "--dataset shapes10",
    ):
        assert word in message
    assert names_in(cache) == []


def test_error_classes() -> None:
    assert issubclass(DataError, ValueError)
    assert issubclass(DownloadError, OSError)
    assert not issubclass(DataError, OSError)


def test_import_is_light() -> None:
    code = (
        "import sys, invocupy.data; invocupy.data.shapes10(10, 0);"
        "print(sorted({'pooch', 'tqdm', 'requests', 'numba', 'cupy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
