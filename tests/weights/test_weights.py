"""Weights of other programs: the same numbers as PyTorch's, files read safely, the command."""

from __future__ import annotations

import io
import json
import pickle  # to write files, never to read one
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import network_rule
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from invocupy import Tensor, checkpoint, models, nn
from invocupy import functional as F  # noqa: N812
from invocupy.cli import main
from invocupy.weights import WeightsError, import_state, read

DATA = Path(__file__).parents[1] / "files"
CLASSES = 10
STORED = json.loads((DATA / "networks.json").read_text())["networks"]

# ---------------------------------------------------------------------------- the same numbers

AUTHORS = {
    r"^stem\.conv1": "stem.0.conv", r"^stem\.bn1": "stem.0.bn", r"^stem\.bn2": "stem.2",
    r"^stem\.conv3": "stem.4.conv", r"^stem\.bn3": "stem.4.bn", r"^stem\.conv2": "stem.1",
    r"\breduce\b": "conv1.conv", r"\bnorm\b": "conv1.bn", r"\bspan\b": "conv2.conv",
    r"^(?=stem|layer)": "backbone.", r"^fc": "head.fc",
}  # fmt: skip


def authors(name: str) -> str:
    """The RedNet authors' name for one of ours."""
    for pattern, new in AUTHORS.items():
        name = re.sub(pattern, new, name)
    return name


def network(name: str) -> tuple[Any, dict[str, np.ndarray]]:
    """A network, and a checkpoint for it with the rule's weights and its program's names."""
    model = models.NETWORKS[name](num_classes=CLASSES, rng=0)
    rename = authors if name.startswith("rednet") else str
    shapes = {rename(own): array.shape for own, array in model.state_dict().items()}
    return model, network_rule.weights(shapes)


def logits(model: Any, dtype: str, kind: str) -> np.ndarray:
    return np.asarray(model.eval()(network_rule.image(network_rule.SIZES[kind]).astype(dtype)).data)


def numbers(name: str, dtype: str) -> dict[str, np.ndarray]:
    """What is stored of a network, computed in ``dtype``; and of one with a mistake."""
    model, state = network(name)
    import_state(model, state)
    for parameter in model.parameters():
        parameter.data = parameter.data.astype(dtype)
    found = {kind: logits(model, dtype, kind) for kind in network_rule.SIZES}
    last = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)][-1]
    last.eps = 1.1e-5
    found["mistaken"] = logits(model, dtype, "odd")
    last.eps = 1e-5
    model.train()
    x = Tensor(network_rule.image(network_rule.TRAINED).astype(dtype))
    loss = F.cross_entropy(model(x), np.array([0, 1]))
    loss.backward()
    wanted = STORED[name]["gradients"]
    own = {n if n in wanted else authors(n): p for n, p in model.named_parameters()}
    return found | {"loss": loss.data} | {n: network_rule.some(own[n].grad) for n in wanted}


@pytest.mark.parametrize("name", STORED)
def test_numbers_are_pytorchs(name: str) -> None:
    """In float64, whose roundings are 2**29 times finer, nearer to PyTorch by a factor of 2**20.

    And one norm whose eps is a tenth too large is not.
    """
    stored = STORED[name] | STORED[name]["gradients"] | {"mistaken": STORED[name]["odd"]}
    single, double = numbers(name, "float32"), numbers(name, "float64")
    for key in single:
        values = np.array(stored[key])
        assert double[key].shape == values.shape
        allowed = np.abs(single[key] - values).max() * 2.0**-20
        near = np.abs(double[key] - values).max() <= allowed
        assert near == (key != "mistaken"), key


# ---------------------------------------------------------------------------- names


@pytest.mark.parametrize("prefix", ["", "module.", "state_dict.", "state_dict.module."])
@pytest.mark.parametrize("name", ["rednet26", "resnet18"])
def test_prefixes_and_wrappers(name: str, prefix: str) -> None:
    model, state = network(name)
    import_state(model, {prefix + key: value for key, value in state.items()})
    once = model.state_dict()
    other, _ = network(name)
    import_state(other, {"state_dict": state, "meta": {"epoch": 130}})
    again = other.state_dict()
    assert all((once[key] == again[key]).all() for key in once)
    # our own names, too
    import_state(other, once)
    import_state(other, once, source="invocupy")
    import_state(other, state, source="rednet" if name == "rednet26" else "torchvision")


def test_paddles_conversions() -> None:
    """No prefixes, other names for the moments, no counts, and the last matrix transposed."""
    model, state = network("rednet26")
    paddle = {}
    for name, value in state.items():
        short = re.sub(r"^(backbone|head)\.", "", name)
        short = short.replace("running_mean", "_mean").replace("running_var", "_variance")
        if not short.endswith("num_batches_tracked"):
            paddle[short] = value.T if short == "fc.weight" else value
    import_state(model, paddle)
    other, _ = network("rednet26")
    import_state(other, state)
    ours, theirs = model.state_dict(), other.state_dict()
    assert all((ours[name] == theirs[name]).all() for name in theirs)


@pytest.mark.parametrize("name", ["rednet26", "resnet18"])
def test_missing_left_over_and_misshapen_are_errors(name: str) -> None:
    model, state = network(name)
    before = model.state_dict()
    first, *_, last = (key for key in state if not key.endswith("num_batches_tracked"))
    for wrong, message in (
        ({k: v for k, v in state.items() if k != last}, "missing"),
        (state | {"auxiliary.weight": np.zeros(3)}, "auxiliary.weight: left over"),
        (state | {first: state[first][..., 0]}, "shape"),
        ({}, "missing"),
    ):
        with pytest.raises(ValueError, match=message):
            import_state(model, wrong)
    after = model.state_dict()
    assert all((before[key] == after[key]).all() for key in before)


def test_sources_that_do_not_fit() -> None:
    model, state = network("resnet18")
    with pytest.raises(ValueError, match="source='rednet' knows RedNet, got ResNet"):
        import_state(model, state, source="rednet")
    with pytest.raises(ValueError, match="source must be one of 'auto', 'article', 'rednet'"):
        import_state(model, state, source="keras")  # type: ignore[arg-type]


# ---------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["small.pth", "small-old.pth"])
def test_a_checkpoint_of_pytorch(name: str) -> None:
    arrays = read(DATA / name)
    plain = np.arange(12.0).reshape(3, 4)
    expected = {
        "plain": plain.astype("f4"), "parameter": (plain / 8).astype("f4"),
        "transposed": plain.T.astype("f4"), "shared": plain[1:, 2:].astype("f4"),
        "half": plain.astype("f2"), "bfloat": (plain / 4).astype("f4"), "count": np.array(7),
        "mask": plain > 5, "double": plain,
    }  # fmt: skip
    assert list(arrays) == list(expected)
    for name, array in expected.items():
        assert arrays[name].dtype == array.dtype, name
        assert arrays[name].tolist() == array.tolist(), name
        assert not arrays[name].flags.writeable, name


SOME = {
    "a.weight": np.arange(6, dtype="f4").reshape(2, 3),
    "b": np.array(2.5),
    "big": np.arange(4, dtype=">i8"),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
}


def write_npz(path: Path) -> None:
    np.savez_compressed(path, **SOME)


def write_safetensors(path: Path) -> None:
    from safetensors.numpy import save_file

    save_file(
        {
            name: np.ascontiguousarray(a, a.dtype.newbyteorder("=")) if a.ndim else a
            for name, a in SOME.items()
        },
        path,
    )


def write_own(path: Path) -> None:
    checkpoint.save(path, SOME, {})


def write_pickle(protocol: int, pairs: bool = False) -> Any:
    def write(path: Path) -> None:
        state: dict[str, Any] = {n: (n, a) if pairs else a for n, a in SOME.items()}
        extra = {"StructuredToParameterName@@": {"a.weight": "linear_0.w_0"}}
        path.write_bytes(pickle.dumps(state | extra, protocol))

    return write


@pytest.mark.parametrize(
    "write",
    [write_npz, write_safetensors, write_own, write_pickle(4, pairs=True)]
    + [write_pickle(protocol) for protocol in (2, 3, 4, 5)],
)
def test_other_formats(write: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    write(path)
    found = read(path)
    assert found.keys() == SOME.keys()
    for name, array in SOME.items():
        assert found[name].shape == array.shape
        assert found[name].dtype == array.dtype.newbyteorder("=") or name == "big"
        assert found[name].tolist() == array.tolist()
        assert not found[name].flags.writeable


class Reduces:
    """Pickled as a call of ``function``, which a real unpickler would make."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


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
        (b"", "it is no safetensors"),
        (b"GIF89a", "it is no safetensors"),
        (b"PK\x03\x04", "damaged"),
        (b"\x02\0\0\0\0\0\0\0{]", "no whole safetensors"),
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


# ---------------------------------------------------------------------------- the command


def test_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, state = network("resnet18")
    file, out = tmp_path / "their.npz", tmp_path / "ours.safetensors"
    np.savez(file, **state)
    command = ["import", str(file), "--model", "resnet18", "--out", str(out)]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["parameters"] == 11_181_642
    assert (result["classes"], result["in_channels"]) == (10, 3)
    assert result["bytes"] == out.stat().st_size
    model, other = (models.resnet18(num_classes=10, rng=seed) for seed in (1, 2))
    import_state(model, read(out))
    import_state(other, state)
    ours, theirs = model.state_dict(), other.state_dict()
    assert all((ours[name] == theirs[name]).all() for name in theirs)

    before = out.read_bytes()
    for wrong in ({"fc.weight": state["fc.weight"]}, {}, state | {"more": np.ones(2)}):
        np.savez(file, **wrong)
        assert main(command) == 65
        assert "has no weights of resnet18" in capsys.readouterr().err
    file.write_bytes(b"nothing")
    assert main(command) == 65
    assert main(["import", str(tmp_path / "none"), *command[2:]]) == 65
    assert main([*command[:3], "vgg", *command[4:]]) == 2
    assert main([*command[:-1], str(tmp_path / "no" / "folder")]) == 2
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours.safetensors", "their.npz"]
