"""Headers, members and pickles that promise more than there is."""

from __future__ import annotations

import io
import itertools
import lzma
import os
import pickle  # to write files, never to read one
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from weight_files import SHAPE, VALUES, npy, npz, safetensors, stored, text

from invocupy import checkpoint, nn
from invocupy.weights import WeightsError, import_state, read


def test_any_flipped_bit_of_our_own_files_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    checkpoint.save(path, {"a.weight": VALUES}, {"epoch": 3})
    whole = path.read_bytes()
    assert read(path)["a.weight"].tolist() == VALUES.tolist()
    for place, bit in itertools.product(range(len(whole)), range(8)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        with pytest.raises(WeightsError):
            read(path)


HEADERS = [
    npy(SHAPE.format("'<f4'", "(1152921504606846976,)")),
    npy(SHAPE.format("'<f4'", "(2**60,)")),
    npy(SHAPE.format("'<f4'", "(-1,)")),
    npy(SHAPE.format("'<f4'", "(" * 300)),
    npy(SHAPE.format("'<f4'", "-" * 5000 + "1")),
    npy(SHAPE.format("'<f4'", "-" * 200_000 + "1"), version=b"\x02\x00"),
    npy(SHAPE.format("'<f4'", "'")),
    npy(SHAPE.format("'''", "")),
    npy(SHAPE.format("'O'", "(1,)"), bytes(8)),
    npy(SHAPE.format("[('a', '<f4')]", "(1,)"), bytes(4)),
    npy(SHAPE.format("'<f4'", "9" * 5000)),
    npy("{'descr'"),
    npy("\0" * 100),
    npy(""),
    b"\x93NUMPY",
    b"",
]


@pytest.mark.parametrize("content", HEADERS)
def test_hostile_headers_of_numpy(content: bytes, tmp_path: Path) -> None:
    refused(npz(tmp_path / "w.npz", content))


def refused(path: Path) -> str:
    """The message, which names the file, in one line."""
    with pytest.raises(WeightsError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.isprintable()
    return message


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_members_packed_in_other_ways(method: int, tmp_path: Path) -> None:
    content = io.BytesIO()
    np.save(content, np.zeros(1 << 20))
    assert "NumPy does not use" in refused(
        npz(tmp_path / "w", content.getvalue(), compression=method)
    )


@pytest.mark.parametrize("module", [lzma, zipfile])
def test_damaged_members(module: Any, tmp_path: Path) -> None:
    method = zipfile.ZIP_LZMA if module is lzma else zipfile.ZIP_DEFLATED
    whole = npz(tmp_path / "w", bytes(range(256)), compression=method).read_bytes()
    for place in range(30, len(whole), 3):
        damaged = bytearray(whole)
        damaged[place] ^= 255
        (tmp_path / "w").write_bytes(damaged)
        refused(tmp_path / "w")


def test_bombs(tmp_path: Path) -> None:
    """What would unpack to far more than it is."""
    path = tmp_path / "w.npz"
    zeros = bytes(1 << 20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(8):
            archive.writestr(f"{number}.npy", zeros)
    content = path.read_bytes().replace(struct.pack("<I", 1 << 20), struct.pack("<I", 1 << 28))
    path.write_bytes(content)  # 8 times 256 MiB, as the directory states
    assert "unpacked it would be larger than 1024 MiB" in refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.npy", b"")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("w.npy", b"")
    assert "two members of one name" in refused(path)


COLLIDING = (
    b"}("
    + b"".join(
        b"\x8a\x0c" + (number * (2**61 - 1)).to_bytes(12, "little") + b"N"
        for number in range(100_000)
    )
    + b"u."
)  # keys of one hash: 10**10 comparisons
SAME = b"]q\x00(" + b"]q\x01(" + text("a") + b"K\x01e" + b"e"  # [["a", 1]], remembered as 0


@pytest.mark.parametrize(
    "content",
    [
        b"}" + 20_000 * text("model") + b".",
        20_000 * (b"}" + text("model")) + b"}" + 20_000 * b"s" + b".",
        20_000 * b"]" + 19_999 * b"a" + b".",
        20_000 * b"(" + 20_000 * b"t" + b".",
        b"}q\x00" + text("model") + b"h\x00s.",
        SAME + 5000 * b"ccollections\nOrderedDict\nh\x00\x85R0" + b".",
        text("x" * 100_000) + b"q\x00" + 5000 * b"h\x00h\x00\x930" + b".",
        b"\x8a\xff" + b"\xff" * 255 + b".",
        COLLIDING,
        b"I" + b"9" * 10_000 + b"\n.",
        b"X\xff\xff\xff\xff.",
        b"\x8d" + b"\xff" * 8 + b".",
        b"X\x02\x00\x00\x00\xff\xfe.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00tR.",
        b"}" + text("a.b") + b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00tRs.",
        b"c\x1b[31m\nevil\n.",
        b"}" + text("a\nb") + b"K\x01s.",
    ],
)
def test_hostile_pickles(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "w"
    for start in (b"\x80\x02", bytes.fromhex("80028a0a6cfc9c46f9206aa850192e2e")):
        path.write_bytes(start + content)
        refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + content)
    refused(path)


@pytest.mark.parametrize("shape", ["[1152921504606846976]", "[3.0]", "[-3]", "[[3]]", '["3"]'])
def test_hostile_shapes_of_safetensors(shape: str, tmp_path: Path) -> None:
    refused(safetensors(tmp_path / "w", "F32", bytes(12), shape))


def test_files_of_other_kinds(tmp_path: Path) -> None:
    path = tmp_path / "w"
    np.save(tmp_path / "w.npy", VALUES)
    assert "has no names: save an .npz" in refused(tmp_path / "w.npy")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
    assert "no .npz or PyTorch file: it has a member 'config.json'" in refused(path)
    path.write_bytes(pickle.dumps({0: VALUES}, 4))
    assert "an array under a key of type int: names must be plain text" in refused(path)
    path.write_bytes(pickle.dumps({"a\x1b[31m": VALUES}, 4))
    assert "names must be plain text" in refused(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "a pipe or a device" in refused(tmp_path / "pipe")
    assert "a pipe or a device" in refused(Path("/dev/zero"))
    assert "cannot be read" in refused(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    assert "No such file" in refused(tmp_path / "link")
    with pytest.raises(WeightsError, match="NUL"):
        read("a\0b")


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    safetensors(tmp_path / "w", "F32", VALUES.tobytes())
    assert read("~/w")["w"].tolist() == VALUES.tolist()
    with pytest.raises(WeightsError, match="cannot be read"):
        read("~nobody of this name/w")


def test_a_tensor_that_repeats_its_elements_is_named_and_no_damage(tmp_path: Path) -> None:
    expanded = b"K\x05\x85K\x00\x85"  # size and stride
    path = stored(tmp_path / "w.pth", "FloatStorage", VALUES.tobytes(), 3)
    with zipfile.ZipFile(path) as archive:
        content = archive.read("a/data.pkl")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", content.replace(b"K\x03\x85K\x01\x85", expanded))
        archive.writestr("a/data/0", VALUES.tobytes())
    with pytest.raises(WeightsError, match=r"more elements than are stored, as expand\(\)"):
        read(path)


@pytest.mark.parametrize("name", ["module." * 30_000 + "w", "a." * 30_000, "w" * 1001])
def test_names_that_are_too_long(name: str, tmp_path: Path) -> None:
    content = VALUES.tobytes()
    entry = f'{{"dtype":"F32","shape":[3],"data_offsets":[0,{len(content)}]}}'
    header = f'{{"{name}":{entry}}}'.encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + content)
    with pytest.raises(WeightsError, match="names must be plain text of at most 1000 characters"):
        read(path)
    with pytest.raises(ValueError, match="at most 1000 characters"):
        import_state(nn.Linear(1, 1), {name: VALUES})
