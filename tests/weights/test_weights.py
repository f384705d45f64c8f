"""Weights of other programs: the same numbers as PyTorch's, names, files, the command."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import network_rule
import numpy as np
import pytest
from weight_files import SOME, write_npz, write_own, write_pickle, write_safetensors

from invocupy import Tensor, models, nn
from invocupy import functional as F  # noqa: N812
from invocupy.cli import main
from invocupy.weights import import_state, read

DATA = Path(__file__).parents[1] / "files"
CLASSES = 10
STORED = json.loads((DATA / "networks.json").read_text())["networks"]

AUTHORS = {
    r"^stem\.conv1": "stem.0.conv", r"^stem\.bn1": "stem.0.bn", r"^stem\.bn2": "stem.2",
    r"^stem\.conv3": "stem.4.conv", r"^stem\.bn3": "stem.4.bn", r"^stem\.conv2": "stem.1",
    r"\breduce\b": "conv1.conv", r"\bnorm\b": "conv1.bn", r"\bspan\b": "conv2.conv",
    r"^(?=stem|layer)": "backbone.", r"^fc": "head.fc",
}  # fmt: skip

# ---------------------------------------------------------------------------- the same numbers


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


"""Tuples of two of the one before: 2**10,000 for whoever walks, hashes or prints them."""

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
