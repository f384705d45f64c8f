"""Weight files that people have, and damaged or hostile ones: arrays, or one line that says why."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import io
import itertools
import lzma
import os
import pathlib
import pickle  # to write files, never to read one
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from invocupy import checkpoint, nn
from invocupy.weights import WeightsError, import_state, read

VALUES = np.array([1.0, -2.5, 0.375], np.float32)
BITS = (VALUES.view("<u4") >> 16).astype("<u2")  # of bfloat16, in which they are exact


def text(value: str) -> bytes:
    """An instruction of a pickle."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def stored(path: Path, kind: str, content: bytes, count: int, more: bytes = b"") -> Path:
    """A PyTorch file with one tensor of one axis; ``more`` are instructions for its metadata."""
    storage = b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text("0") + text("cpu")
    storage += bytes([75, count]) + b"tQ"
    size = bytes([75, count]) + b"\x85"
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + size + b"K\x01\x85"
    rebuild += b"\x89ccollections\nOrderedDict\n)R" + more + b"tR"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}" + text("w") + rebuild + b"s.")
        archive.writestr("a/data/0", content)
    return path


def safetensors(path: Path, dtype: str, content: bytes, shape: str = "[3]") -> Path:
    header = f'{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{len(content)}]}}}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + content)
    return path


# ---------------------------------------------------------------------------- the right numbers


@pytest.mark.parametrize("form", ["pth", "safetensors", "npz", "pdparams", "pickle"])
def test_bfloat16_is_read_from_every_format(form: str, tmp_path: Path) -> None:
    path = tmp_path / "w"
    if form == "pth":
        stored(path, "BFloat16Storage", BITS.tobytes(), 3)
    elif form == "safetensors":
        safetensors(path, "BF16", BITS.tobytes())
    elif form == "npz":  # as NumPy saves arrays of ml_dtypes
        np.savez(path.with_suffix(".npz"), w=BITS.view("V2"))
        path = path.with_suffix(".npz")
    elif form == "pdparams":  # as Paddle's Tensor.numpy() has it
        path.write_bytes(pickle.dumps({"w": BITS}, 4))
    else:  # as pickles of arrays of ml_dtypes have it: a class in place of "u2"
        content = pickle.dumps({"w": BITS}, 2)
        assert content.count(text("u2")) == 1
        path.write_bytes(content.replace(text("u2"), b"cml_dtypes\nbfloat16\n"))
    found = read(path)["w"]
    assert found.dtype == np.float32
    assert found.tolist() == VALUES.tolist()
    assert not found.flags.writeable


def bit(name: str) -> bytes:
    return b"}" + text(name) + b"\x88s"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (b"", VALUES),
        (b"}", VALUES),
        (b"N", VALUES),
        (bit("neg"), -VALUES),
        (bit("conj"), VALUES),  # of real numbers
        (b"}(" + text("conj") + b"\x88" + text("neg") + b"\x88u", -VALUES),
        (b"}" + text("neg") + b"\x89s", VALUES),
    ],
)
def test_bits_of_pytorch_are_applied(more: bytes, expected: Any, tmp_path: Path) -> None:
    path = stored(tmp_path / "w", "FloatStorage", VALUES.tobytes(), 3, more)
    assert read(path)["w"].tolist() == expected.tolist()


def test_complex_bits_are_applied(tmp_path: Path) -> None:
    values = np.array([1 + 2j, -3j, 4], np.complex64)
    path = stored(tmp_path / "w", "ComplexFloatStorage", values.tobytes(), 3, bit("conj"))
    assert read(path)["w"].tolist() == values.conj().tolist()


@pytest.mark.parametrize("more", [bit("transposed"), b"}N", b"]"])
def test_unknown_metadata_are_refused(more: bytes, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="metadata that are not known"):
        read(stored(tmp_path / "w", "FloatStorage", VALUES.tobytes(), 3, more))


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_float8_of_safetensors_is_refused(dtype: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=f"'w' has dtype {dtype}, .* convert it to F32"):
        read(safetensors(tmp_path / "w", dtype, bytes(3)))


def test_float8_of_numpy_and_pytorch_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    np.savez(path, w=np.zeros(3, "V1"))
    with pytest.raises(WeightsError, match=r"w\.npy is an array of dtype .*V1"):
        read(path)
    storage = b"(" + text("storage") + b"ctorch.storage\nUntypedStorage\n" + text("0") + text("cpu")
    content = b"\x80\x02}" + text("w") + b"ctorch._utils\n_rebuild_tensor_v3\n(" + storage
    content += b"K\x03tQK\x00K\x03\x85K\x01\x85\x89}ctorch\nfloat8_e5m2\n}tRs."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", content)
        archive.writestr("a/data/0", bytes(3))
    with pytest.raises(
        WeightsError, match=r"'w': a tensor of torch\.float8_e5m2 .*: save .* in float32"
    ):
        read(path)


def test_python_2_wrote_them(tmp_path: Path) -> None:
    """Its strings are bytes, and its ordered dictionaries are made of lists of pairs."""
    path = tmp_path / "w"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x03t"
    array += b"cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
    array += b"K\x00tb\x89U\x0c" + VALUES.tobytes() + b"tb"
    path.write_bytes(b"\x80\x02ccollections\nOrderedDict\n(](](U\x06weight" + array + b"eetR.")
    assert read(path)["weight"].tolist() == VALUES.tolist()

    npz(path, npy(SHAPE.format("'<f4'", "(3L,)").ljust(117) + "\n", VALUES.tobytes()))
    assert read(path)["w"].tolist() == VALUES.tolist()  # long integers in a header
    path.write_bytes(pickle.dumps({"weight": VALUES}, 0))
    with pytest.raises(WeightsError, match="pickles are read from protocol 2 on"):
        read(path)


# ---------------------------------------------------------------------------- things beside weights


class Color(enum.Enum):
    """Something of the program that trained."""

    RED = 1


class Options(dict[str, Any]):
    """A dictionary of the program that trained."""


BESIDE = {
    "args": argparse.Namespace(lr=0.1, layers=[1, 2]),
    "counter": collections.Counter({3: 1}),
    "default": collections.defaultdict(list, {1: [2]}),
    "ordered": collections.OrderedDict(a=1),
    "queue": collections.deque([1]),
    "best": np.float64(3),
    "integer": np.int32(3),
    "names": np.array(["cat", "dog"]),
    "objects": np.array([{}], object),
    "path": pathlib.PurePosixPath("/data"),
    "when": datetime.datetime.now(datetime.UTC),
    "color": Color.RED,
    "options": Options(a=1),
    "sets": ({1, 2}, frozenset([3])),
    "keys": {(1, 2): 3, None: 4, 1.5: 5, b"x": 6},
    "numbers": (1 + 2j, 2**70, slice(1, 2), range(3)),
    "bytes": (b"x", bytearray(b"y")),
    "generator": np.random.default_rng(0).bit_generator.state,
    "function": os.system,
    "class": dict,
}
WEIGHTS = {"a.weight": VALUES, "a.bias": VALUES[:1]}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {"state_dict": w},
        lambda w: {"model": w},
        lambda w: {"net": w},
        lambda w: {"weights": w},
        lambda w: {"ema": w},
        lambda w: {"model_state_dict": w},
        lambda w: {"checkpoint": {"state_dict": w, "epoch": 3}},
        lambda w: {"model": {"module": {"state_dict": collections.OrderedDict(w)}}},
        lambda w: {"model": {}, "ema": collections.defaultdict(int, w)},
        lambda w: {"model": w, "ema": {"a.weight": VALUES[:2]}},
        lambda w: w,
    ],
)
def test_what_lies_beside_weights_is_skipped(wrap: Any, protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_bytes(pickle.dumps({**wrap(WEIGHTS), **BESIDE, "objects": None}, protocol))
    found = read(path)
    assert {name: array.tolist() for name, array in found.items()} == {
        name: array.tolist() for name, array in WEIGHTS.items()
    }
    if "state_dict" in wrap(WEIGHTS):  # not among the weights, an array of objects is skipped, too
        path.write_bytes(pickle.dumps({**wrap(WEIGHTS), **BESIDE}, protocol))
        assert read(path).keys() == WEIGHTS.keys()


@pytest.mark.parametrize("value", [Color.RED, np.array([{}], object), None, "text", [VALUES]])
def test_nothing_else_passes_where_a_weight_is_needed(value: Any, tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_bytes(pickle.dumps({"state_dict": {**WEIGHTS, "b.weight": value}}, 4))
    with pytest.raises(WeightsError, match=r"it has an? .* under 'b\.weight', where a weight is"):
        read(path)


def test_key_chooses(tmp_path: Path) -> None:
    path = tmp_path / "w"
    other = {"a.weight": VALUES * 2}
    path.write_bytes(pickle.dumps({"gen": {"model": WEIGHTS, "ema": other}, "disc": {"x": VALUES}}))
    assert read(path, key="gen").keys() == WEIGHTS.keys()
    assert read(path, key="gen.ema")["a.weight"].tolist() == (VALUES * 2).tolist()
    with pytest.raises(WeightsError, match=r"it has nothing under key='none', but .*'gen', 'disc'"):
        read(path, key="none")
    path.write_bytes(pickle.dumps({"gen": WEIGHTS, "disc": {"x": VALUES}}))
    with pytest.raises(WeightsError, match="arrays under 'gen', 'disc': say which with key="):
        read(path)
    np.savez(tmp_path / "w.npz", **{"gen.x": VALUES, "disc.y": VALUES})
    assert list(read(tmp_path / "w.npz", key="gen")) == ["x"]


# ---------------------------------------------------------------------------- damage, hostile files


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


def npz(path: Path, content: bytes, **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("w.npy", content)
    return path


def npy(header: str, content: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", len(header))
    return b"\x93NUMPY" + version + size + header.encode() + content


SHAPE = "{{'descr': {}, 'fortran_order': False, 'shape': {}}}"
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
