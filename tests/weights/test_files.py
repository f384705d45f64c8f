"""Weight files that people have: the right numbers, whatever lies beside them."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import os
import pathlib
import pickle  # to write files, never to read one
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from weight_files import SHAPE, VALUES, npy, npz, safetensors, stored, text

from invocupy.weights import WeightsError, read

BITS = (VALUES.view("<u4") >> 16).astype("<u2")  # of bfloat16, in which they are exact

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
    with pytest.raises(WeightsError, match="pickles must be of protocol 2 or newer"):
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
