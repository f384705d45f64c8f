"""Damaged and hostile weight files: arrays, or one line that says why."""

from __future__ import annotations

import io
import pickle  # to write files, never to read one
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from weight_files import text, write_npz, write_own, write_pickle

from invocupy.weights import WeightsError, read

DATA = Path(__file__).parents[1] / "files"

# ---------------------------------------------------------------------------- files


class Reduces:
    """Pickled as a call of ``function``, which a real unpickler would make."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def tensor(
    size: str = "K\x02",
    stride: str = "K\x01",
    offset: str = "K\x00",
    count: str = "K\x02",
    key: str = "0",
    function: str = "ctorch._utils\n_rebuild_tensor_v2\n",
) -> bytes:
    """A dictionary of one tensor, as PyTorch's pickles have it; the arguments are instructions."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu")
    storage += count.encode("latin1") + b"tQ"
    arguments = b"(" + storage + offset.encode("latin1")
    arguments += size.encode("latin1") + b"\x85" + stride.encode("latin1") + b"\x85\x89}t"
    return b"\x80\x02}" + text("w") + function.encode() + arguments + b"Rs."


def torch_zip(
    path: Path, content: bytes, storage: bytes = bytes(8), compression: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", storage)
    return path


def test_the_hand_made_file_is_right(tmp_path: Path) -> None:
    """So that the ones below are refused for the one thing that is wrong in them."""
    path = torch_zip(tmp_path / "w.pth", tensor(), np.array([1.5, 2], "<f4").tobytes())
    assert read(path)["w"].tolist() == [1.5, 2]


POSIX = r"posix\.system \(not read, and nothing of it was run"
LONG = "\x8a\x08" + (2**61).to_bytes(8, "little").decode("latin1")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tensor(size="K\x03"), "more elements than are stored"),
        (tensor(size="K\x02", stride="K\x02"), "beyond its storage"),
        (tensor(offset="K\x01"), "beyond its storage"),
        (tensor(size="J\xff\xff\xff\xff"), "impossible sizes"),
        (tensor(stride="J\xff\xff\xff\xff"), "impossible sizes"),
        (tensor(offset="J\xff\xff\xff\xff"), "impossible sizes"),
        (tensor(size=LONG), "more elements than are stored"),
        (tensor(stride=LONG), "beyond its storage"),
        (tensor(count="K\x03"), "storage of another size"),
        (tensor(count=LONG), "storage of another size"),
        (tensor(size="\x88"), "impossible sizes"),
        (tensor(key="1"), "is damaged"),
        (tensor(key="../0"), "other than a storage"),
        (tensor(function="cposix\nsystem\n"), POSIX),
        (tensor(function="ctorch\nFloatStorage\n"), "storage made directly"),
        (tensor()[:-1], "STOP"),
        (tensor()[:-2], "STOP"),
        (b"\x80\x02}.", None),
        (b"\x80\x02].", "a value of type list"),
        (b"\x80\x02}" + text("w") + b"K\x01s.", "no array"),
        (b"\x80\x02}" + text("w") + b"}" + text("w") + b"K\x01ss.", "no array"),
        (b"\x80\x02s.", "damaged"),
        (b"\x80\x02(0.", "damaged"),
        (b"\x80\x02(.", "mark"),
        (b"\x80\x02h\x07.", "damaged"),
        (b"\x80\x02\x8c\x05posix\x8c\x06system\x93.", POSIX),
        (b"\x80\x02iposix\nsystem\n.", "INST"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02\xff.", "damaged"),
        (b"", "damaged"),
    ],
)  # fmt: skip
def test_hostile_pytorch_files(content: bytes, message: str | None, tmp_path: Path) -> None:
    path = torch_zip(tmp_path / "w.pth", content)
    if message is None:
        assert read(path) == {}
        return
    with pytest.raises(WeightsError, match=message):
        read(path)


def test_old_files_cut_short_or_hostile(tmp_path: Path) -> None:
    path, whole = tmp_path / "w.pth", (DATA / "small-old.pth").read_bytes()
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        with pytest.raises(WeightsError):
            read(path)
    evil = whole.replace(b"torch._utils\n_rebuild_tensor_v2", b"posix\nsystem")
    assert evil != whole
    path.write_bytes(evil)
    with pytest.raises(WeightsError, match=POSIX):
        read(path)


def test_hostile_zips(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch_zip(path, tensor(), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match="packed in a way"):
        read(path)
    torch_zip(path, tensor(), storage=bytes(7))
    with pytest.raises(WeightsError, match="damaged"):
        read(path)
    whole = torch_zip(path, tensor()).read_bytes()
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        with pytest.raises(WeightsError):
            read(path)


def test_nothing_in_a_pickle_is_run(tmp_path: Path) -> None:
    import os

    mark = tmp_path / "was here"
    calls = [
        Reduces(os.system, f"touch {mark}"),
        Reduces(eval, f"open({str(mark)!r}, 'w')"),
        Reduces(np.load, str(mark)),
        Reduces(getattr, "text", "upper"),
        Reduces(np.dtype, "O"),
        Reduces(np.ndarray, (10**6,)),
    ]
    path = tmp_path / "w.pdparams"
    for call in calls:
        for protocol in 2, 4:
            path.write_bytes(pickle.dumps({"w": call}, protocol))
            with pytest.raises(WeightsError, match="refused"):
                read(path)
    assert not mark.exists()


LAUGHS = b"()q\x00" + 10_000 * b"h\x00h\x00\x86q\x00" + b"t"
"""Tuples of two of the one before: 2**10,000 for whoever walks, hashes or prints them."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"}" + text("w") + LAUGHS + b"s.", "no array"),
        (b"}" + LAUGHS + b"K\x01s.", "a key of type"),
        (LAUGHS + b".", "a value of type tuple"),
        (b"cnumpy\ndtype\n" + LAUGHS + b"R.", "damaged"),
        (b"cbuiltins\ntuple\n" + LAUGHS + b"R.", "damaged"),
    ],
)
def test_a_billion_laughs(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pdparams"
    path.write_bytes(b"\x80\x02" + content)
    with pytest.raises(WeightsError, match=message):
        read(path)


def test_hostile_arrays_of_objects_and_sizes(tmp_path: Path) -> None:
    path = tmp_path / "w"
    np.savez(path.with_suffix(".npz"), w=np.array([{}], object))
    with pytest.raises(WeightsError, match="Python objects"):
        read(path.with_suffix(".npz"))
    path.write_bytes(pickle.dumps({"w": np.array([{}], object)}, 4))
    with pytest.raises(WeightsError, match="a NumPy array of dtype O8"):
        read(path)
    for wrong in (b"\x03", b"\xff"):  # a length of three, and none at all
        content = pickle.dumps({"w": np.arange(2, dtype="u1")}, 4).replace(
            b"K\x02\x85", b"K" + wrong + b"\x85"
        )
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="bytes than its shape"):
            read(path)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (2**40, 2**40)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.npy", header.getvalue())
    with pytest.raises(WeightsError, match="bytes than its shape"):
        read(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    with pytest.raises(WeightsError, match="cannot be read"):
        read(path)
    with pytest.raises(WeightsError, match="cannot be read"):
        read(tmp_path)
    for content, message in (
        (b"", "it is not a safetensors"),
        (b"GIF89a", "it is not a safetensors"),
        (b"PK\x03\x04", "damaged"),
        (b"\x02\0\0\0\0\0\0\0{]", "not a whole safetensors"),
        (bytes.fromhex("80028a0a6cfc9c46f9206aa850192e2e"), "pickle is damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=message):
            read(path)
    write_own(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="digest"):
        read(path)


@given(seed=st.integers(0, 2**32 - 1))
def test_damage_gives_arrays_or_our_error(seed: int, tmp_path_factory: Any) -> None:
    """Bits flipped anywhere in a file."""
    rng = np.random.default_rng(seed)
    kinds = ["small.pth", "small-old.pth", "w.pdparams", "w.npz"]
    kind = kinds[rng.integers(4)]
    path = tmp_path_factory.mktemp("damage") / kind
    if kind.startswith("small"):
        path.write_bytes((DATA / kind).read_bytes())
    else:
        (write_npz if kind == "w.npz" else write_pickle(4))(path)
    content = bytearray(path.read_bytes())
    for place in rng.integers(0, len(content), 3):
        content[place] ^= 1 << rng.integers(8)
    path.write_bytes(content)
    try:
        arrays = read(path)
    except WeightsError:
        return
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
