"""Data: CIFAR-10 files good and bad, downloads, the generated set, and batches that resume."""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import http.server
import io
import os
import subprocess
import sys
import tarfile
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pooch  # noqa: F401  (its logger keeps the standard error of its first import)
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from invocupy import data
from invocupy.data import Batches, DataError, DownloadError, cifar, cutout, random_crop, random_flip

RECORDS = 20  # a file in most tests, in place of 10,000
USER_FOLDER = os.environ.get("INVOCUPY_DATA")  # which the tests themselves must not touch
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


# ---------------------------------------------------------------------------- CIFAR-10 files


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same format with 20 records a file."""
    monkeypatch.setattr(cifar, "_RECORDS", RECORDS)
    monkeypatch.setattr(cifar, "_FILE_SIZE", RECORDS * 3073)
    monkeypatch.setattr(cifar, "_UNPACKED_LIMIT", 6 * RECORDS * 3073 + 2**16)


@pytest.fixture(autouse=True)
def _no_user_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INVOCUPY_DATA", raising=False)


def make_files(records: int = RECORDS) -> dict[str, bytes]:
    """Contents by name: labels count up, pixels are random multiples of 64, so that they pack."""
    files = {}
    for number, name in enumerate((*cifar.TRAIN_FILES, *cifar.TEST_FILES)):
        content = np.random.default_rng(number).integers(0, 4, (records, 3073), np.uint8) * 64
        content[:, 0] = (np.arange(records) + number) % 10
        files[name] = content.tobytes()
    return files


def make_folder(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def plain(name: str, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info, content


def official(files: dict[str, bytes]) -> list[tuple[tarfile.TarInfo, bytes]]:
    """Members in the official archive's manner: folder, files out of order, a page."""
    folder = tarfile.TarInfo(cifar.FOLDER + "/")
    folder.type = tarfile.DIRTYPE
    names = sorted(files, key=lambda name: hashlib.md5(name.encode()).hexdigest())  # noqa: S324
    members = [plain(f"{cifar.FOLDER}/{name}", files[name]) for name in names]
    return [(folder, b""), *members, plain(f"{cifar.FOLDER}/readme.html", b"<html>")]


def make_archive(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return path


def check_content(root: Path | None, files: dict[str, bytes]) -> None:
    for train, names in ((True, cifar.TRAIN_FILES), (False, cifar.TEST_FILES)):
        images, labels = data.cifar10(root, train=train)
        records = np.frombuffer(b"".join(files[name] for name in names), np.uint8)
        records = records.reshape(-1, 3073)
        assert images.dtype == np.uint8
        assert labels.dtype == np.int64
        assert images.shape == (len(records), 3, 32, 32)
        np.testing.assert_array_equal(images.reshape(len(records), -1), records[:, 1:])
        np.testing.assert_array_equal(labels, records[:, 0])


def refuse(root: Path, *words: str, train: bool = True) -> None:
    """DataError, in one line, that names the file and says the words."""
    with pytest.raises(DataError) as caught:
        data.cifar10(root, train=train)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(root), "shapes10", *words):
        assert word in message


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("inside", ["", cifar.FOLDER])
def test_reads_a_folder(tmp_path: Path, inside: str) -> None:
    files = make_files()
    make_folder(tmp_path / inside, files)
    check_content(tmp_path, files)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("by_path", [True, False])
def test_reads_the_archive_and_extracts_nothing(tmp_path: Path, by_path: bool) -> None:
    files = make_files()
    archive = make_archive(tmp_path / cifar.ARCHIVE, official(files))
    check_content(archive if by_path else tmp_path, files)
    assert os.listdir(tmp_path) == [cifar.ARCHIVE]  # noqa: PTH208


def test_reads_files_of_the_official_size(tmp_path: Path) -> None:
    content = np.zeros((10_000, 3073), np.uint8)
    content[:, 0] = np.arange(10_000) % 10
    content[:, 1 + 1024 * 2] = np.arange(10_000) % 251  # first blue pixel
    archive = make_archive(
        tmp_path / "own-name.tar.gz", official({"test_batch.bin": content.tobytes()})
    )
    folder = make_folder(tmp_path / "folder", {"test_batch.bin": content.tobytes()})
    for root in (archive, folder):
        images, labels = data.cifar10(root, train=False)
        assert images.shape == (10_000, 3, 32, 32)
        np.testing.assert_array_equal(labels, np.arange(10_000) % 10)
        np.testing.assert_array_equal(images[:, 2, 0, 0], np.arange(10_000) % 251)
        assert images[:, :2].max() == images[:, 2, 0, 1:].max() == 0


def test_real_data() -> None:
    root = USER_FOLDER
    if not root or cifar._find(Path(root), (*cifar.TRAIN_FILES, *cifar.TEST_FILES)) is None:
        pytest.skip("INVOCUPY_DATA names no folder with CIFAR-10")
    images, labels = data.cifar10(root)
    assert np.bincount(labels).tolist() == [5000] * 10
    scaled = [images[:, c] / np.float64(255) for c in range(3)]
    np.testing.assert_allclose([c.mean() for c in scaled], data.CIFAR10_MEAN, atol=1e-5)
    np.testing.assert_allclose([c.std() for c in scaled], data.CIFAR10_STD, atol=1e-5)
    images, labels = data.cifar10(root, train=False)
    assert images.shape == (10_000, 3, 32, 32)
    assert np.bincount(labels).tolist() == [1000] * 10


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("change", [-3073, -1, 1, 3073])
@pytest.mark.parametrize("packed", [True, False])
def test_refuses_a_wrong_size(tmp_path: Path, change: int, packed: bool) -> None:
    files = make_files()
    content = files["data_batch_3.bin"]
    files["data_batch_3.bin"] = content[:change] if change < 0 else content + bytes(change)
    root = make_folder(tmp_path / "folder", files)
    if packed:
        root = make_archive(tmp_path / "a.tar.gz", official(files))
    refuse(root, "data_batch_3.bin", str(RECORDS * 3073), str(RECORDS * 3073 + change))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("packed", [True, False])
def test_refuses_a_label_above_nine(tmp_path: Path, packed: bool) -> None:
    files = make_files()
    content = bytearray(files["test_batch.bin"])
    content[7 * 3073] = 10
    files["test_batch.bin"] = bytes(content)
    root = make_folder(tmp_path / "folder", files)
    if packed:
        root = make_archive(tmp_path / "a.tar.gz", official(files))
    refuse(root, "test_batch.bin", "label 10", "record 7", train=False)
    assert len(data.cifar10(root)[0]) == 5 * RECORDS  # the training files are whole


@pytest.mark.usefixtures("small")
def test_refuses_missing_files(tmp_path: Path) -> None:
    files = make_files()
    del files["data_batch_4.bin"]
    refuse(make_folder(tmp_path / "folder", files), "data_batch_4.bin")
    refuse(make_archive(tmp_path / "a.tar.gz", official(files)), "data_batch_4.bin")
    refuse(tmp_path / "nowhere", cifar.ARCHIVE)
    python_version = [plain("cifar-10-batches-py/data_batch_1", b"\x80\x02")]
    refuse(make_archive(tmp_path / "py.tar.gz", python_version), "binary version")
    elsewhere = [plain(name, content) for name, content in make_files().items()]
    refuse(make_archive(tmp_path / "flat.tar.gz", elsewhere), f"{cifar.FOLDER}/data_batch_1.bin")


ODD_TYPES = {
    "symlink": tarfile.SYMTYPE,
    "link": tarfile.LNKTYPE,
    "character device": tarfile.CHRTYPE,
    "block device": tarfile.BLKTYPE,
    "fifo": tarfile.FIFOTYPE,
    "sparse": tarfile.GNUTYPE_SPARSE,
}


def hostile(kind: str) -> tuple[tarfile.TarInfo, bytes]:
    info, content = plain(f"{cifar.FOLDER}/extra", b"")
    if kind == "parent":
        return plain(f"{cifar.FOLDER}/../../evil", b"evil")
    if kind == "absolute":
        return plain("/tmp/evil", b"evil")  # noqa: S108
    if kind == "fake link":  # under a name that is wanted
        info.name = f"{cifar.FOLDER}/data_batch_1.bin"
    if kind == "newline":
        info.name = "a\nb\x1b[2J"
    info.type = ODD_TYPES.get(kind, tarfile.SYMTYPE)
    info.linkname = "../../../etc/passwd"
    return info, content


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", [*ODD_TYPES, "parent", "absolute", "fake link", "newline"])
def test_refuses_hostile_members(tmp_path: Path, kind: str, first: bool) -> None:
    members = official(make_files())
    members.insert(0 if first else len(members), hostile(kind))
    refuse(make_archive(tmp_path / "a.tar.gz", members), "member")
    assert os.listdir(tmp_path) == ["a.tar.gz"]  # noqa: PTH208


@pytest.mark.usefixtures("small")
def test_refuses_bombs(tmp_path: Path) -> None:
    members = official(make_files())
    big = plain(f"{cifar.FOLDER}/big", bytes(2**22))
    refuse(make_archive(tmp_path / "big.tar.gz", [big, *members]), "unpacks to more")
    many = [plain(f"{cifar.FOLDER}/{number}", b"") for number in range(101)]
    refuse(make_archive(tmp_path / "many.tar.gz", many), "more than 100 members")
    twins = [plain(f"{cifar.FOLDER}/test_batch.bin", make_files()["test_batch.bin"])] * 2
    refuse(make_archive(tmp_path / "double.tar.gz", twins), "twice", train=False)
    tail = tmp_path / "tail.tar.gz"
    content = gzip.decompress(make_archive(tail, members).read_bytes())
    tail.write_bytes(gzip.compress(content + bytes(2**22)))
    refuse(tail, "unpacks to more")
    # a header that announces a name of eight gigabytes, of which a part follows
    info = tarfile.TarInfo("long")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**33
    name = tmp_path / "name.tar.gz"
    name.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(2**22)))
    refuse(name, "unpacks to more")


@pytest.mark.usefixtures("small")
def test_refuses_what_is_no_archive(tmp_path: Path) -> None:
    for content in (b"", b"hello", gzip.compress(b""), gzip.compress(b"hello" * 1000)):
        path = tmp_path / "a.tar.gz"
        path.write_bytes(content)
        refuse(path)
    path.write_bytes(make_archive(path, official(make_files())).read_bytes() + b"more")
    refuse(path, "not a whole tar.gz")


@pytest.mark.usefixtures("small")
def test_compares_the_checksum_behind_the_last_member(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar, "_UNPACKED_LIMIT", 2**23)
    path = make_archive(tmp_path / "a.tar.gz", official(make_files()))
    padded = gzip.compress(gzip.decompress(path.read_bytes()) + bytes(2**22))
    path.write_bytes(padded)
    check_content(path, make_files())
    path.write_bytes(padded[:-5] + bytes([padded[-5] ^ 1]) + padded[-4:])
    refuse(path, "CRC")


@pytest.mark.usefixtures("small")
def test_damaged_archives_are_refused_or_unchanged(tmp_path: Path) -> None:
    # gzip's checksum covers the content; a flip elsewhere (time, padding) may do no harm
    path = make_archive(tmp_path / "a.tar.gz", official(make_files()))
    whole = path.read_bytes()
    images, labels = data.cifar10(path)
    rng = np.random.default_rng(0)
    refused = 0
    for position in [*range(12), *rng.integers(0, len(whole), 150)]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            found = data.cifar10(path)
        except DataError:
            refused += 1
        else:
            np.testing.assert_array_equal(found[0], images)
            np.testing.assert_array_equal(found[1], labels)
    assert refused >= 150
    for length in rng.integers(0, len(whole), 50):
        path.write_bytes(whole[:length])
        refuse(path)
    unpacked = gzip.decompress(whole)
    for length in range(0, len(unpacked), 10_000):
        packer = zlib.compressobj(1, zlib.DEFLATED, 31)
        start = packer.compress(unpacked[:length]) + packer.flush(zlib.Z_FULL_FLUSH)
        path.write_bytes(start + b"\x07" * 100)  # a block of the type that does not exist
        refuse(path)


# ---------------------------------------------------------------------------- downloads


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
    address = f"http://127.0.0.1:{server.server.server_port}/{cifar.ARCHIVE}"
    monkeypatch.setattr(cifar, "URL", address)
    monkeypatch.setattr(cifar, "ARCHIVE_SIZE", len(server.content))
    monkeypatch.setattr(cifar, "ARCHIVE_SHA256", hashlib.sha256(server.content).hexdigest())
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
    assert names_in(cache) == [cifar.ARCHIVE]
    assert capsys.readouterr().out == ""


def test_retries_and_mends_its_own_cache(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # without INVOCUPY_DATA the user's cache folder is used, which is ours to repair
    monkeypatch.setattr(cifar, "_RETRIES", 1)
    server.answers = ["500", "200"]
    check_content(None, make_files())
    assert server.requests == 2
    (archive,) = (tmp_path / "cache").rglob(cifar.ARCHIVE)
    archive.write_bytes(archive.read_bytes()[:-1])
    check_content(None, make_files())
    assert server.requests == 3
    assert names_in(archive.parent) == [cifar.ARCHIVE]


def test_a_users_damaged_archive_is_not_replaced(server: Server, cache: Path) -> None:
    server.answers = ["200"]
    cache.mkdir()
    (cache / cifar.ARCHIVE).write_bytes(b"mine")
    with pytest.raises(DataError):
        data.cifar10()
    assert (cache / cifar.ARCHIVE).read_bytes() == b"mine"
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
        monkeypatch.setattr(cifar, "URL", f"http://127.0.0.1:{port}/{cifar.ARCHIVE}")
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
        cifar.URL,
        str(cifar.ARCHIVE_SIZE),
        cifar.ARCHIVE_SHA256,
        str(cache / cifar.ARCHIVE),
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


# ---------------------------------------------------------------------------- shapes10


@pytest.mark.parametrize(
    ("train", "digest"),
    [
        (True, "33dea92b65d83a6c15fa2b977631d1fd2ff8abd53703c86b8e8d8a2f1109c8db"),
        (False, "9a837796110699cbeddf40a201082a9364ba6c3bbb6f6f99aa41e6600f5aa1f2"),
    ],
)
def test_shapes10_is_fixed_for_ever(train: bool, digest: str) -> None:
    # "shapes10-v1". Another digest is another data set: give it a new name instead.
    images, labels = data.shapes10(100, seed=0, train=train)
    assert hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest() == digest


def test_shapes10_is_balanced_and_grows_from_the_front() -> None:
    images, labels = data.shapes10(1234, seed=5)
    assert images.shape == (1234, 3, 32, 32)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
    assert (np.sort(labels[:1230].reshape(-1, 10), axis=1) == np.arange(10)).all()
    for n in (0, 1, 10, 499, 500, 501):
        fewer = data.shapes10(n, seed=5)
        np.testing.assert_array_equal(fewer[0], images[:n])
        np.testing.assert_array_equal(fewer[1], labels[:n])


def test_shapes10_streams_do_not_meet() -> None:
    sets = [data.shapes10(600, seed, train)[0] for seed in (0, 1) for train in (True, False)]
    together = np.concatenate(sets).reshape(4 * 600, -1)
    assert len({row.tobytes() for row in together}) == 4 * 600


def test_shapes10_normalisation() -> None:
    scaled = data.shapes10(4000, seed=3)[0].transpose(1, 0, 2, 3).reshape(3, -1) / np.float64(255)
    # 4,000 independent images with a deviation of at most 0.294 between their means
    np.testing.assert_allclose(scaled.mean(1), data.SHAPES10_MEAN, atol=4 * 0.294 / 4000**0.5)
    np.testing.assert_allclose(scaled.std(1), data.SHAPES10_STD, atol=4 * 0.294 / 4000**0.5)


def test_shapes10_needs_more_than_colour_or_a_linear_model() -> None:
    train, train_labels = data.shapes10(3000, seed=0)
    test, test_labels = data.shapes10(1000, seed=0, train=False)
    means, wanted = train.mean((2, 3)), test.mean((2, 3))
    nearest = ((wanted[:, None] - means) ** 2).sum(2).argmin(1)
    assert (train_labels[nearest] == test_labels).mean() < 0.2
    # ridge regression on the pixels, in its dual form; its weight chosen on the test set, even
    x = train.reshape(3000, -1).astype(np.float32) / 255 - 0.5
    gram, targets = x @ x.T, np.eye(10, dtype=np.float32)[train_labels] - 0.1
    cross = (test.reshape(1000, -1).astype(np.float32) / 255 - 0.5) @ x.T
    for weight in (10, 1000):
        scores = cross @ np.linalg.solve(gram + weight * np.eye(3000, dtype=np.float32), targets)
        assert (scores.argmax(1) == test_labels).mean() < 0.4


def test_shapes10_refuses_bad_arguments() -> None:
    for n, seed, name in ((-1, 0, "n"), (1.5, 0, "n"), (1, -1, "seed"), (1, True, "seed")):
        with pytest.raises(ValueError, match=f"{name} must be an integer >= 0"):
            data.shapes10(n, seed)  # type: ignore[arg-type]


def test_names() -> None:
    assert len(set(data.CIFAR10_CLASSES)) == len(set(data.SHAPES10_CLASSES)) == 10


# ---------------------------------------------------------------------------- batches


def numbered(n: int, channels: int = 3, side: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Random images, and the sample's number as label."""
    images = np.random.default_rng(n).integers(0, 256, (n, channels, side, side), np.uint8)
    return images, np.arange(n)


ALL = (functools.partial(random_crop, pad=2), random_flip, functools.partial(cutout, size=3))


@given(
    n=st.integers(0, 40),
    batch_size=st.integers(1, 45),
    seed=st.integers(0, 2**64),
    epoch=st.integers(0, 1000),
    shuffle=st.booleans(),
    cut=st.floats(0, 1),
)
@example(n=40, batch_size=10, seed=0, epoch=0, shuffle=True, cut=0.5)
@example(n=41, batch_size=10, seed=0, epoch=0, shuffle=True, cut=1.0)
def test_every_sample_once_and_exact_resume(
    n: int, batch_size: int, seed: int, epoch: int, shuffle: bool, cut: float
) -> None:
    images, labels = numbered(n)
    make = functools.partial(
        Batches, images, labels, batch_size, seed=seed, shuffle=shuffle, augment=ALL, **HALF
    )
    whole = list(make().epoch(epoch))
    assert len(whole) == len(make()) == -(-n // batch_size)
    assert all(len(x) == len(y) == batch_size for x, y in whole[:-1])
    seen = [label for _, y in whole for label in y]
    assert sorted(seen) == list(range(n))
    assert shuffle or seen == list(range(n))
    start = round(cut * len(whole))
    rest = list(make().epoch(epoch, start))
    assert len(rest) == len(whole) - start
    for (x, y), (again, labels_again) in zip(whole[start:], rest, strict=True):
        assert x.tobytes() == again.tobytes()
        np.testing.assert_array_equal(y, labels_again)


def test_a_sample_is_augmented_alike_in_any_batch() -> None:
    images, labels = numbered(50)
    by_sample = []
    for batch_size, shuffle in ((7, True), (50, True), (1, False)):
        batches = Batches(images, labels, batch_size, seed=3, shuffle=shuffle, augment=ALL, **HALF)
        pairs = list(batches.epoch(2))
        x = np.concatenate([x for x, _ in pairs])
        by_sample.append(x[np.argsort(np.concatenate([y for _, y in pairs]))])
    np.testing.assert_array_equal(by_sample[0], by_sample[1])
    np.testing.assert_array_equal(by_sample[0], by_sample[2])


def test_seed_and_epoch_matter() -> None:
    images, labels = numbered(100)
    orders = set()
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1)):
        batches = Batches(images, labels, 100, seed=seed, augment=ALL, **HALF)
        ((x, y),) = batches.epoch(epoch)
        orders.add((tuple(y), x.tobytes()))
    assert len(orders) == 4


def test_order_is_fixed_for_ever() -> None:
    # a checkpoint of an older version must resume with the samples that were left
    images, labels = numbered(100)
    batches = Batches(images, labels, 10, **HALF)
    assert next(batches.epoch(0))[1].tolist() == [77, 0, 70, 50, 8, 73, 88, 14, 1, 78]
    assert next(batches.epoch(1))[1].tolist() == [77, 98, 91, 29, 12, 57, 60, 17, 35, 94]


def test_batch_is_normalised_contiguous_and_its_own() -> None:
    images, labels = numbered(5)
    before = images.copy()
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    for source in (images, images[:, :, ::-1, ::-1], np.asfortranarray(images)):
        for augment in ((), ALL, (lambda x, random: x.transpose(0, 1, 3, 2),)):
            batches = Batches(source, labels, 5, shuffle=False, augment=augment, mean=mean, std=std)
            ((x, y),) = batches.epoch(0)
            assert x.dtype == np.float32
            assert x.shape == (5, 3, 8, 8)
            assert x.flags.c_contiguous
            assert y.dtype == labels.dtype
            if not augment:
                exact = (source / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
                # pixel * scale + shift: scale and product round 1 / std, then shift, then the sum
                reach = (2 + np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
                assert (np.abs(x - exact) <= 1.01 * 2.0**-24 * (reach + np.abs(exact))).all()
            x[...] = 0
            y[...] = 0
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(labels, np.arange(5))


def test_drop_last() -> None:
    images, labels = numbered(10)
    for n, batch_size, steps in ((10, 4, 2), (10, 5, 2), (10, 10, 1)):
        batches = Batches(images[:n], labels[:n], batch_size, drop_last=True, **HALF)
        sizes = [len(y) for _, y in batches.epoch(0)]
        assert sizes == [batch_size] * steps
        assert len(batches) == steps
    with pytest.raises(ValueError, match="batch_size 11 with drop_last leaves nothing of 10"):
        Batches(images, labels, 11, drop_last=True, **HALF)


@pytest.mark.parametrize(
    ("error", "match", "change"),
    [
        (TypeError, "one library", {"images": [[1]]}),
        (TypeError, "one library", {"labels": [1]}),
        (TypeError, "images must be uint8", {"images": np.zeros((10, 3, 8, 8), np.float32)}),
        (TypeError, "labels integers", {"labels": np.zeros(10)}),
        (ValueError, r"\(N, C, H, W\)", {"images": np.zeros((10, 8, 8), np.uint8)}),
        (ValueError, r"labels \(N,\)", {"labels": np.arange(9)}),
        (ValueError, "3 finite numbers", {"mean": (0.5,)}),
        (ValueError, "std positive", {"std": (0.5, 0.0, 0.5)}),
        (ValueError, "batch_size must be an integer >= 1", {"batch_size": 0}),
        (ValueError, "seed must be an integer >= 0", {"seed": -1}),
        (ValueError, "batch_size must be an integer >= 1", {"batch_size": 2.5}),
    ],
)
def test_batches_refuse(error: type, match: str, change: dict[str, Any]) -> None:
    images, labels = numbered(10)
    with pytest.raises(error, match=match):
        Batches(**{"images": images, "labels": labels, "batch_size": 2, **HALF, **change})


@pytest.mark.parametrize(
    ("epoch", "start", "words"),
    [
        (-1, 0, "epoch must be an integer >= 0"),
        (0, -1, "start must be an integer >= 0"),
        (0, 6, "start must be at most 5"),
    ],
)
def test_epoch_refuses_at_once(epoch: int, start: int, words: str) -> None:
    batches = Batches(*numbered(10), 2, **HALF)
    assert list(batches.epoch(0, 5)) == []
    with pytest.raises(ValueError, match=words):
        batches.epoch(epoch, start)  # not only when the first batch is taken


# ---------------------------------------------------------------------------- augmentation


def naive_crop(image: np.ndarray, random: np.ndarray, pad: int) -> np.ndarray:
    out = np.zeros_like(image)
    _, height, width = image.shape
    down, right = int(random[0] * (2 * pad + 1)) - pad, int(random[1] * (2 * pad + 1)) - pad
    for i in range(height):
        for j in range(width):
            if 0 <= i + down < height and 0 <= j + right < width:
                out[:, i, j] = image[:, i + down, j + right]
    return out


def naive_flip(image: np.ndarray, random: np.ndarray) -> np.ndarray:
    out = image.copy()
    if random[2] < 0.5:
        for j in range(image.shape[2]):
            out[:, :, j] = image[:, :, image.shape[2] - 1 - j]
    return out


def naive_cutout(image: np.ndarray, random: np.ndarray, size: int) -> np.ndarray:
    out = image.copy()
    _, height, width = image.shape
    top, left = int(random[3] * height) - size // 2, int(random[4] * width) - size // 2
    for i in range(max(top, 0), min(top + size, height)):
        for j in range(max(left, 0), min(left + size, width)):
            out[:, i, j] = 127
    return out


@pytest.mark.parametrize(
    ("fast", "naive"),
    [
        (random_crop, functools.partial(naive_crop, pad=4)),
        (functools.partial(random_crop, pad=0), functools.partial(naive_crop, pad=0)),
        (functools.partial(random_crop, pad=7), functools.partial(naive_crop, pad=7)),
        (random_flip, naive_flip),
        (cutout, functools.partial(naive_cutout, size=8)),
        (functools.partial(cutout, size=1), functools.partial(naive_cutout, size=1)),
        (functools.partial(cutout, size=5), functools.partial(naive_cutout, size=5)),
    ],
)
def test_augmentation_against_a_loop(fast: Any, naive: Any) -> None:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (60, 3, 6, 9), np.uint8)
    random = rng.random((60, 8))
    random[:2] = [[0.0] * 8, [1 - 2.0**-53] * 8]
    before = images.copy()
    out = fast(images, random)
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out, [naive(*pair) for pair in zip(images, random, strict=True)])
    np.testing.assert_array_equal(images, before)
    assert fast(images[:0], random[:0]).shape == (0, 3, 6, 9)


def test_augmentation_reaches_all_places_evenly() -> None:
    # 40,000 samples of one white pixel in the middle: 81 places and 2 sides of it
    images = np.zeros((40_000, 1, 9, 9), np.uint8)
    images[:, :, 4, 4] = 255
    batches = Batches(
        images,
        np.zeros(40_000, np.int64),
        40_000,
        augment=(random_crop,),
        mean=(0.0,),
        std=(1.0,),
    )
    ((x, _),) = batches.epoch(0)
    counts = x.sum((0, 1))
    expected = 40_000 / 81
    # five standard deviations of a binomial count
    assert (np.abs(counts - expected) < 5 * expected**0.5).all()


@pytest.mark.gpu
def test_batches_on_the_gpu_equal_those_on_the_cpu() -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    if not cupy.is_available():
        pytest.skip("CuPy finds no GPU")
    images, labels = numbered(50)
    make = functools.partial(Batches, batch_size=16, seed=1, augment=ALL, **HALF)
    there = make(cupy.asarray(images), cupy.asarray(labels)).epoch(4)
    for (x, y), (x_gpu, y_gpu) in zip(make(images, labels).epoch(4), there, strict=True):
        assert isinstance(x_gpu, cupy.ndarray)
        assert x_gpu.flags.c_contiguous
        np.testing.assert_array_equal(x_gpu.get(), x)
        np.testing.assert_array_equal(y_gpu.get(), y)
