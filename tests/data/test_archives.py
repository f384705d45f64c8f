"""Archives of CIFAR-10 that were packed anew, hostile archives, and where data is looked for."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from invocupy.cli import main
from invocupy.data import DataError, DownloadError, cifar, cifar10
from invocupy.settings import SettingError
from invocupy.train import Config, ConfigError, read_settings

RECORDS = 20  # a file, in place of 10,000
SIZE = RECORDS * 3073
CONTENT = {
    name: bytes([number]) + bytes(3072) + bytes(SIZE - 3073)
    for number, name in enumerate((*cifar.TEN.train, *cifar.TEN.test))
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress
}  # fmt: skip


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same format with 20 records a file, and no folder of the user."""
    small = cifar.TEN._replace(records=(RECORDS, RECORDS), spare=2**16)
    monkeypatch.setattr(cifar, "TEN", small)
    monkeypatch.delenv("INVOCUPY_DATA", raising=False)


def member(
    name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, size: int | None = None
) -> bytes:
    """A header and its content; the size that the header states may be another one."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content)
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if size is not None:
        header[124:136] = (size % 2**96).to_bytes(12, "big")
        header[124] = 0x80 if size >= 0 else 0xFF
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content + bytes(-len(content) % 512)


def tar(prefix: str = f"{cifar.TEN.folder}/", **options: Any) -> bytes:
    """An archive as Python's tarfile writes it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as archive:
        folder = tarfile.TarInfo(prefix)
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in CONTENT.items():
            info = tarfile.TarInfo(prefix + name)
            info.size, info.mtime = len(content), 1.5 if options else 1
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


WHOLE = tar()


def refuse(path: Path, *words: str) -> None:
    """DataError in one line that names the file."""
    with pytest.raises(DataError) as caught:
        cifar10(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(path), *words):
        assert word in message


# ---------------------------------------------------------------------------- packed anew


@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("prefix", [f"{cifar.TEN.folder}/", f"./{cifar.TEN.folder}/"])
def test_archives_packed_anew(ending: str, prefix: str, tmp_path: Path) -> None:
    path = tmp_path / f"cifar-10-binary.tar{ending}"
    path.write_bytes(PACKERS[ending](tar(prefix)))
    renamed = tmp_path / "of-any-name"
    renamed.write_bytes(path.read_bytes())
    for root in (tmp_path, path, renamed):
        images, labels = cifar10(root)
        assert images.shape == (5 * RECORDS, 3, 32, 32)
        assert labels[::RECORDS].tolist() == [0, 1, 2, 3, 4]
        assert cifar10(root, train=False)[1][0] == 5


@pytest.mark.parametrize("style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_style_of_tar(style: int, tmp_path: Path) -> None:
    """In the PAX style the fractions of the times stand in headers of their own."""
    content = tar(format=style, pax_headers={"comment": "global"})
    assert (b"mtime=1.5" in content) == (style == tarfile.PAX_FORMAT)
    (tmp_path / "a.tar").write_bytes(content)
    assert len(cifar10(tmp_path / "a.tar")[0]) == 5 * RECORDS


def test_an_archive_in_the_official_style_comes_first(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-binary.tar").write_bytes(b"damaged")
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(gzip.compress(WHOLE))
    assert len(cifar10(tmp_path)[0]) == 5 * RECORDS


# ---------------------------------------------------------------------------- hostile

FIRST = f"{cifar.TEN.folder}/data_batch_1.bin"
HOSTILE = {
    **{f"size {n}": member("x", size=n) for n in (2**80, 2**63, 2**31, -1, -512, -(2**70))},
    **{
        f"wanted, size {size}": member(FIRST, CONTENT["data_batch_1.bin"], size=size)
        for size in (2**80, SIZE + 1, SIZE - 1, 0, -SIZE)
    },
    **{
        f"3000 headers {kind!r}": member("x", bytes(30), kind) * 3000
        for kind in (b"x", b"g", b"X", b"L", b"K", b"S", b"0", b"5")
    },
    **{
        f"header {kind!r} of size {size}": member("x", b"30 mtime=1\n", kind, size)
        for kind in (b"x", b"g", b"L", b"K")
        for size in (2**80, 2**33, -1)
    },
    "another name": member("x", b"31 path=evil\n", b"x") + member(FIRST),
    "another size": member("x", b"9 a=b\n13 size=9999\n", b"x") + member(FIRST),
    "sparse in pax": member("x", b"22 GNU.sparse.major=1\n", b"x") + member(FIRST),
    "sparse": member(FIRST, kind=b"S") + b"\1" * 512 * 100,
    "unknown kind": member(FIRST, kind=b"Q"),
    "zeros": bytes(10**6),
    "nothing": b"",
    "text": b"hello" * 1000,
    "a name that is no text": member("x").replace(b"x", b"\xff", 1),
}  # fmt: skip

HARMLESS = "zeros", "nothing", "a name that is no text"  # before a whole archive; zeros end it


@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_archives_are_refused(kind: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(PACKERS[ending](HOSTILE[kind]))
    refuse(path)
    if kind not in HARMLESS:
        path.write_bytes(PACKERS[ending](HOSTILE[kind] + WHOLE))
        refuse(path)


@pytest.mark.parametrize("ending", PACKERS)
def test_bombs_end_at_the_limit(ending: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    for content in (WHOLE + bytes(2**21), member("x", bytes(2**21)) + WHOLE):
        path.write_bytes(PACKERS[ending](content))
        refuse(path, "unpacks to more than" if ending else "more than")
    path.write_bytes(bytes(cifar.TEN.unpacked + 2**20 + 1))
    refuse(path, "more than")


def test_an_endless_chain_of_empty_gzip_members(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(b"") * 10_000)
    refuse(path)


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz"])
def test_truncated_and_damaged_packing(ending: str, tmp_path: Path) -> None:
    path, packed = tmp_path / "a.tar", PACKERS[ending](WHOLE)
    for end in (*range(1, 30), len(packed) // 2, *range(len(packed) - 20, len(packed))):
        path.write_bytes(packed[:end])
        refuse(path)
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 0xFF
    path.write_bytes(flipped)
    refuse(path, f"not a whole tar{ending} archive")


def test_a_wrong_checksum(tmp_path: Path) -> None:
    path, packed = tmp_path / "a.tar", gzip.compress(WHOLE)
    path.write_bytes(packed[:-8] + (zlib.crc32(WHOLE) ^ 1).to_bytes(4, "little") + packed[-4:])
    refuse(path, "CRC")


def test_a_plain_tar_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    last = WHOLE.rindex(bytes([4]) + bytes(3072))  # of the last training file
    for end in range(0, last + SIZE, 9_999):
        path.write_bytes(WHOLE[:end])
        refuse(path)


@given(seed=st.integers(0, 2**32 - 1))
def test_damage_gives_arrays_or_our_error(seed: int, tmp_path_factory: Any) -> None:
    """Bytes changed in the headers of a plain tar, where no checksum protects them."""
    rng = np.random.default_rng(seed)
    content = bytearray(WHOLE)
    headers = [0] + [512 + i * (512 + SIZE + -SIZE % 512) for i in range(6)]
    for _ in range(rng.integers(1, 4)):
        start = headers[rng.integers(len(headers))]
        content[start + rng.integers(512)] = rng.integers(256)
        content[start + 148 : start + 156] = b" " * 8
        content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])
    path = tmp_path_factory.mktemp("damage") / "a.tar"
    path.write_bytes(content)
    try:
        images, _ = cifar10(path)
    except DataError:
        return
    assert images.shape == (5 * RECORDS, 3, 32, 32)


def test_the_command_ends_with_65(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(HOSTILE["size 1208925819614629174706176"]))
    command = ["train", "--dataset", "cifar10", "--data-dir", str(path), "--layers", "0"]
    assert main([*command, "--out", str(tmp_path / "run"), "--device", "cpu"]) == 65
    assert str(path) in capsys.readouterr().err


# ---------------------------------------------------------------------------- places


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with data in it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    for name, content in CONTENT.items():
        (tmp_path / "data" / name).write_bytes(content)
    return tmp_path


def test_the_home_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    for root in ("~/data", Path("~/data"), Path("~", "data")):
        assert len(cifar10(root)[0]) == 5 * RECORDS
    monkeypatch.setenv("INVOCUPY_DATA", "~/data")
    assert len(cifar10()[0]) == 5 * RECORDS
    assert cifar.data_folder() == home / "data"
    assert not (home / "~").exists()


def test_the_home_folder_of_nobody(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    before = sorted(home.iterdir())
    with pytest.raises(DataError, match="~nobody-of-this-name/x begins with ~, but no such user"):
        cifar10("~nobody-of-this-name/x")
    monkeypatch.setenv("INVOCUPY_DATA", "~nobody-of-this-name/x")
    with pytest.raises(SettingError, match=r"INVOCUPY_DATA.* no such user"):
        cifar10()
    assert sorted(home.iterdir()) == before


def test_downloads_go_to_the_home_folder_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("INVOCUPY_DATA", "~/empty")
    monkeypatch.setattr(cifar, "TEN", cifar.TEN._replace(url="http://127.0.0.1:9/none.tar.gz"))
    monkeypatch.setattr(cifar, "_RETRIES", 0)
    with pytest.raises(DownloadError, match=str(home / "empty")):
        cifar10()
    assert not (home / "~").exists()


# ---------------------------------------------------------------------------- byte order marks

MARK = b"\xef\xbb\xbf"


def test_settings_that_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(MARK + b"layers = 3\n")
    (tmp_path / "a.json").write_bytes(MARK + b'{"layers": 3}')
    for name in ("a.toml", "a.json"):
        assert read_settings(tmp_path / name) == {"layers": 3}
    assert Config.from_json("\ufeff" + Config(layers=3).to_json()) == Config(layers=3)
    (tmp_path / "b.toml").write_bytes(MARK * 2 + b"layers = 3\n")
    with pytest.raises(ConfigError, match=r"must be TOML"):
        read_settings(tmp_path / "b.toml")


def test_settings_that_are_nested_too_deep(tmp_path: Path) -> None:
    for name, text in (("a.toml", f"a = {'[' * 10**5}"), ("a.json", "[" * 10**5)):
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match="must be TOML"):
            read_settings(tmp_path / name)
    with pytest.raises(ConfigError, match="must be JSON"):
        Config.from_json("[" * 10**5)
