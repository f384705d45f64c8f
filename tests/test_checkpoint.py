"""Checkpoints: what comes back, what is refused, and what a killed writer leaves."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save as serialize
from safetensors.numpy import save_file

from invocupy import checkpoint
from invocupy.checkpoint import CheckpointError
from invocupy.paths import expand

DTYPES = [*checkpoint._DTYPES.values()]


def make(path: Path) -> bytes:
    """A small checkpoint with each dtype; its bytes."""
    rng = np.random.default_rng(0)
    arrays = {f"a.{name}": rng.integers(0, 2, (3, 2)).astype(name) for name in DTYPES}
    checkpoint.save(path, arrays, {"epoch": 3, "text": 'quote " é \n', "loss": 0.1})
    return path.read_bytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_layout_comes_back_as_it_was(tmp_path: Path, dtype: str) -> None:
    values = np.arange(24).reshape(4, 6).astype(dtype)
    arrays: dict[str, Any] = {
        "plain": values,
        "transposed": values.T,
        "sliced": values[::2, ::-1],
        "broadcast": np.broadcast_to(values[0], (3, 6)),
        "fortran": np.asfortranarray(values),
        "swapped": values.astype(values.dtype.newbyteorder()),
        "scalar": np.array(values[1, 1]),
        "empty": values[:0],
    }
    checkpoint.save(tmp_path / "c", arrays, {})
    loaded, _ = checkpoint.load(tmp_path / "c")
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        assert loaded[name].dtype == dtype
        assert loaded[name].shape == array.shape
        np.testing.assert_array_equal(loaded[name], array)


@given(info=st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text()))
def test_json_comes_back(tmp_path_factory: pytest.TempPathFactory, info: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("json") / "c"
    checkpoint.save(path, {}, info)
    assert checkpoint.load(path) == ({}, info)


def test_numbers_come_back_to_the_bit(tmp_path: Path) -> None:
    special = np.array([np.nan, -np.inf, -0.0, 5e-324, 1 / 3])
    checkpoint.save(tmp_path / "c", {"a": special}, {"third": 1 / 3})
    arrays, info = checkpoint.load(tmp_path / "c")
    assert arrays["a"].tobytes() == special.tobytes()
    assert info == {"third": 1 / 3}


@pytest.mark.parametrize(
    "array", [[1.0], None, np.array([None]), np.zeros(1, complex), np.zeros(1, "U3")]
)
def test_other_arrays_are_refused(tmp_path: Path, array: Any) -> None:
    with pytest.raises(TypeError, match="weight is"):
        checkpoint.save(tmp_path / "c", {"weight": array}, {})
    assert not list(tmp_path.iterdir())


def test_nan_in_the_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        checkpoint.save(tmp_path / "c", {}, {"loss": float("nan")})


def test_every_single_bit_matters(tmp_path: Path) -> None:
    path = tmp_path / "c"
    content = make(path)
    flips = np.random.default_rng(1).choice(8 * len(content), 1500, replace=False)
    # all of the length, the start of the header, and the last bytes of the arrays
    edges = [*range(8 * 24), *range(8 * (len(content) - 4), 8 * len(content))]
    for bit in [*edges, *flips.tolist()]:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"c .*: .*(another checkpoint|import_state)"):
            checkpoint.load(path)


def test_every_truncation_and_any_tail_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c"
    content = make(path)
    lengths = {*range(16), *range(0, len(content), 7), len(content) - 1}
    for damaged in [*(content[:length] for length in lengths), content + b"\0", content + content]:
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=str(path)):
            checkpoint.load(path)


def test_arrays_that_changed_places_are_refused(tmp_path: Path) -> None:
    """What no checksum of the file alone would need to see: same bytes under other names."""
    path = tmp_path / "c"
    checkpoint.save(path, {"aa": np.zeros(2), "bb": np.ones(2)}, {})
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"aa"', b'"cc"'))
    with pytest.raises(CheckpointError, match="digest"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "header", [None, {}, {"format": "pt"}, {"format": "invocupy checkpoint 2"}]
)
def test_other_safetensors_files_are_refused(tmp_path: Path, header: dict[str, str] | None) -> None:
    save_file({"a": np.zeros(2)}, tmp_path / "c", header)
    with pytest.raises(CheckpointError, match="import_state"):
        checkpoint.load(tmp_path / "c")


def test_what_is_no_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none cannot be read .*No such file"):
        checkpoint.load(tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"cannot be read .*directory"):
        checkpoint.load(tmp_path)
    (tmp_path / "pickle").write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        checkpoint.load(tmp_path / "pickle")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = make(tmp_path / "c")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path / "c", {"a": np.zeros(9)}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert (tmp_path / "c").read_bytes() == content


def test_sweep_takes_its_own_files_only(tmp_path: Path) -> None:
    others = {".hidden.tmp", "a.tmp", "last.safetensors", ".x.0123456789abcdeg.tmp"}
    for name in {*others, ".last.safetensors.0123456789abcdef.tmp"}:
        (tmp_path / name).touch()
    checkpoint.sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == others


# ------------------------------------------------------------- what is written to, and where


@pytest.mark.parametrize(
    "name", ["n" * 255, "ü" * 127, "页" * 85, "x" * 240 + ".html", "\udcff" * 255, "a\nb"]
)
def test_every_name_that_the_file_system_takes(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.touch()
    checkpoint.write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_links_stay_and_their_targets_are_written(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target = tmp_path / "real" / "page"
    for existing in (False, True):
        if existing:
            target.write_text("old")
        for name, to in (("direct", target), ("relative", Path("real/page")), ("two", "direct")):
            link = tmp_path / name
            link.unlink(missing_ok=True)
            link.symlink_to(to)
            checkpoint.write_atomically(link, name.encode())
            assert link.is_symlink()
            assert target.read_text() == name
    (tmp_path / "folder").symlink_to("real", target_is_directory=True)
    checkpoint.write_atomically(tmp_path / "folder" / "page", b"through a folder")
    assert target.read_text() == "through a folder"
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["page"]
    for name, to in (("loop", "loop"), ("away", "none/page"), ("over", "real")):
        (tmp_path / name).symlink_to(to)
        with pytest.raises(OSError, match=name):
            checkpoint.write_atomically(tmp_path / name, b"")
        assert (tmp_path / name).is_symlink()


def test_pipes_and_devices_take_the_bytes(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    (tmp_path / "link").symlink_to(pipe)
    try:
        for path in (pipe, tmp_path / "link"):
            checkpoint.write_atomically(path, b"page")
            assert os.read(reader, 99) == b"page"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    checkpoint.write_atomically(os.devnull, b"page")
    assert not Path(os.devnull).is_file()


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="needs /dev/fd")
def test_open_files_are_written_where_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        file.write(b"before ")
        file.flush()
        checkpoint.write_atomically(f"/dev/fd/{file.fileno()}", b"page")
        file.write(b" after")
    assert path.read_bytes() == b"before page after"
    with pytest.raises(OSError, match=r"descriptor|No such file"):
        checkpoint.write_atomically("/dev/fd/999", b"page")


def test_permissions_stay(tmp_path: Path) -> None:
    path = tmp_path / "c"
    before = os.umask(0o027)
    try:
        checkpoint.write_atomically(path, b"new")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        for mode in (0o600, 0o666, 0o755):
            path.chmod(mode)
            checkpoint.write_atomically(path, b"newer")
            assert stat.S_IMODE(path.stat().st_mode) == mode
    finally:
        os.umask(before)


def test_a_file_that_may_not_be_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c"
    path.write_text("old")
    path.chmod(0o444)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may always
    with pytest.raises(PermissionError, match=str(path)):
        checkpoint.write_atomically(path, b"new")
    assert path.read_text() == "old"


@pytest.mark.parametrize("call", ["fsync", "open", "chown", "chmod"])
@pytest.mark.parametrize(
    "number", [errno.EINVAL, errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.EBADF]
)
def test_what_a_file_system_cannot_do_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    (tmp_path / "c").write_text("old")
    real = getattr(os, call)

    def refuse(what: Any, *arguments: Any, **options: Any) -> Any:
        folder = call in ("chown", "chmod") or (
            stat.S_ISDIR(os.fstat(what).st_mode) if call == "fsync" else what == tmp_path
        )
        if folder:
            raise OSError(number, os.strerror(number))
        return real(what, *arguments, **options)

    monkeypatch.setattr(os, call, refuse)
    checkpoint.write_atomically(tmp_path / "c", b"new")
    assert (tmp_path / "c").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_nothing_can_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    for number in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
        checkpoint.write_atomically(tmp_path / "c", b"%d" % number)
        assert (tmp_path / "c").read_bytes() == b"%d" % number
    number = errno.EIO  # the disk is broken
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        checkpoint.write_atomically(tmp_path / "c", b"new")
    assert (tmp_path / "c").read_bytes() == b"%d" % errno.ENOSYS


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    checkpoint.save("~/c", {"a": np.ones(2)}, {"b": 1})
    assert checkpoint.load("~/c")[1] == {"b": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    with pytest.raises(CheckpointError, match=r"cannot be read .*NUL"):
        checkpoint.load("a\0b")
    with pytest.raises(CheckpointError, match=r"no such user .*put \./ before"):
        checkpoint.load("~nobody-of-this-name/c")


@pytest.mark.parametrize("name", ["~", "~x", "~root"])
def test_files_whose_names_begin_with_a_tilde(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home := tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    for path in (f"./{name}", expand(f"./{name}"), str(expand(expand(f".//{name}")))):
        checkpoint.save(path, {}, {"path": str(path)})
        assert checkpoint.load(tmp_path / name)[1] == {"path": str(path)}
    assert not [*home.iterdir()]


def test_errors_name_the_file_that_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*/c'$"):
            checkpoint.write_atomically(tmp_path / "c", b"")
    assert not [*tmp_path.iterdir()]
    with pytest.raises(FileNotFoundError, match=r"none/c'$"):
        checkpoint.write_atomically(tmp_path / "none" / "c", b"")
    with pytest.raises(OSError, match="NUL"):
        checkpoint.write_atomically("a\0b", b"")


def test_sweep_of_named_files(tmp_path: Path) -> None:
    for name in ("a", "b", "aa", "a.b"):
        (tmp_path / f".{name}.0123456789abcdef.tmp").touch()
    (tmp_path / ".a.0000000000000000.tmp").mkdir()
    checkpoint.sweep(tmp_path, ["a", "a.b"])
    left = {".aa.0123456789abcdef.tmp", ".b.0123456789abcdef.tmp", ".a.0000000000000000.tmp"}
    assert {path.name for path in tmp_path.iterdir()} == left


WRITER = """
import sys, numpy as np
from invocupy import checkpoint
step = int(sys.argv[2])
while True:
    step += 1
    checkpoint.save(sys.argv[1], {"a": np.full(300_000, step, np.float32)}, {"step": step})
    print(step, flush=True)
"""


def test_kill_9_while_writing_never_harms(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    rng = np.random.default_rng(2)
    step, temporaries = 0, 0
    for _ in range(25):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(step)], stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline()  # it is in its loop
            start = time.perf_counter()
            assert writer.stdout.readline()
            time.sleep(rng.uniform(0, time.perf_counter() - start))  # as long as one save takes
            writer.kill()
            told = [int(line) for line in writer.stdout.read().split()[:-1]]
        arrays, info = checkpoint.load(path)
        assert info["step"] >= max([step, *told])
        step = info["step"]
        np.testing.assert_array_equal(arrays["a"], np.full(300_000, step, np.float32))
        temporaries += len(list(tmp_path.glob(".*")))
        checkpoint.sweep(tmp_path)
        assert list(tmp_path.iterdir()) == [path]
    assert temporaries, "no kill fell into a write: the test has shown nothing"


@pytest.mark.parametrize("text", ["[" * 100_000, "3", "", "{"])
def test_json_that_is_none(text: str, tmp_path: Path) -> None:
    """With the right digest, as only a program made for it would write it."""
    header = {"format": checkpoint.FORMAT, "sha256": checkpoint._digest({}, text), "info": text}
    path = tmp_path / "w.safetensors"
    path.write_bytes(serialize({}, header))
    with pytest.raises(CheckpointError, match=r"lacks the JSON .*: use another"):
        checkpoint.load(path)


def test_what_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(CheckpointError, match="a pipe or a device, not a file"):
            checkpoint.load(path)
    with pytest.raises(CheckpointError, match="NUL"):
        checkpoint.load("a\0b")
    monkeypatch.setenv("HOME", str(tmp_path))
    checkpoint.save("~/w", {"a": np.ones(2)}, {})
    assert checkpoint.load("~/w")[0]["a"].tolist() == [1, 1]
