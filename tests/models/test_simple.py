"""The article's network: its numbers, and that its options travel with its weights."""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from invocupy import checkpoint, nn
from invocupy.cli import main
from invocupy.models import SimpleModel, resnet18
from invocupy.train import Config, fit, load_run
from invocupy.weights import import_state, read

Weights = Mapping[str, Any]

SIZES = {"height": 8, "width": 8, "hidden_channels": 32, "num_layers": 2, "num_classes": 7}
OPTIONS = [
    {"head_relu": head, "signed": signed}
    for head, signed in itertools.product((True, False), repeat=2)
]
PLACES = {"expand": "0", "expand_norm": "1", "involution": "3", "project": "4", "project_norm": "5"}
GENERATOR = {
    "reduce": ("weights0", "kernel_generator.0"),
    "norm": ("BN", "kernel_generator.1"),
    "span": ("weights1", "kernel_generator.3"),
}


def make(seed: int = 0, **options: Any) -> SimpleModel:
    """A small model in float64 in which every weight and running statistic matters."""
    rng = np.random.default_rng(seed)
    model = SimpleModel(**{**SIZES, "rng": rng, **options})
    for parameter in model.parameters():
        parameter.data = parameter.data + rng.normal(0, 0.1, parameter.shape)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            shape = module.running_var.data.shape
            module.running_mean.data = rng.normal(size=shape).astype(np.float32)
            module.running_var.data = rng.uniform(0.5, 2, shape).astype(np.float32)
    return model.eval()


def images() -> Any:
    return np.random.default_rng(5).normal(size=(3, 3, 8, 8))


def of_the_article(model: SimpleModel, dense: tuple[str, ...] = ()) -> dict[str, Any]:
    """A model's weights under the names of the listing; ``dense`` renames the dense layers."""
    found: dict[str, Any] = {}
    places = sorted({name.split(".")[1] for name in model.state_dict() if name.startswith("head.")})
    names = dict(zip(places, dense or [f"dense_network.{place}" for place in places], strict=True))
    for name, array in model.state_dict().items():
        kind, place, *rest = name.split(".")
        if kind == "head":
            found[f"{names[place]}.{rest[0]}"] = array
        elif rest[0] == "involution":
            for layer in GENERATOR[rest[1]]:
                found[f"layers.{place}.3.{layer}.{rest[2]}"] = array
        else:
            found[f"layers.{place}.{PLACES[rest[0]]}.{rest[1]}"] = array
    return found


# ---------------------------------------------------------------------------- the listing


def relu(x: Any) -> Any:
    return np.maximum(x, 0)


def conv1x1(state: Weights, name: str, x: Any) -> Any:
    weight, bias = state[f"{name}.weight"][:, :, 0, 0], state[f"{name}.bias"]
    return np.einsum("oc,nchw->nohw", weight, x) + bias[:, None, None]


def batch_norm(state: Weights, name: str, x: Any) -> Any:
    scale = state[f"{name}.weight"] / np.sqrt(state[f"{name}.running_var"] + 1e-5)
    shift = state[f"{name}.bias"] - state[f"{name}.running_mean"] * scale
    return x * scale[:, None, None] + shift[:, None, None]


def involve(state: Weights, name: str, x: Any) -> Any:
    n, c, h, w = x.shape
    kernel = relu(batch_norm(state, f"{name}.BN", conv1x1(state, f"{name}.weights0", x)))
    kernel = conv1x1(state, f"{name}.weights1", kernel).reshape(n, c // 16, 1, 9, h, w)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    patches = [padded[:, :, i : i + h, j : j + w] for i in range(3) for j in range(3)]
    stacked = np.stack(patches, 2).reshape(n, c // 16, 16, 9, h, w)
    return (stacked * kernel).sum(3).reshape(n, c, h, w)


def listing(state: Weights, x: Any) -> Any:
    """The article's forward pass in evaluation, up to the softmax."""
    state = {name: np.float64(array) for name, array in state.items()}
    for i in range(SIZES["num_layers"]):
        y = relu(batch_norm(state, f"layers.{i}.1", conv1x1(state, f"layers.{i}.0", x)))
        y = conv1x1(state, f"layers.{i}.4", involve(state, f"layers.{i}.3", y))
        x = relu(batch_norm(state, f"layers.{i}.5", y)) + x
    x = x.reshape(len(x), -1)
    for i in (0, 2, 4):
        x = x @ state[f"dense_network.{i}.weight"].T + state[f"dense_network.{i}.bias"]
        x = x if i == 4 else relu(x)
    return x


@pytest.mark.parametrize("fused", [True, False])
def test_the_default_model_computes_what_the_listing_does(fused: bool) -> None:
    model = make(fused=fused)
    expected = listing(of_the_article(model), images())
    # Some thousand terms are summed, each with a relative error of 2**-53.
    bound = 2.0**-40 * np.abs(expected).max()
    assert np.abs(model.logits(images()).data - expected).max() <= bound
    linear = make(fused=fused, head_relu=False)
    assert np.abs(linear.logits(images()).data - expected).max() > 2.0**20 * bound


def test_head_relu_is_the_default_and_says_what_is_computed() -> None:
    assert SimpleModel(num_layers=0).head_relu is Config().head_relu is True
    assert "ReLU()" in repr(SimpleModel(num_layers=0))
    model = SimpleModel(num_layers=0, head_relu=False)
    assert "ReLU" not in repr(model)
    with pytest.raises(AttributeError, match="head_relu"):
        model.head_relu = True  # type: ignore[misc]


# ---------------------------------------------------------------------------- weights that travel


def as_it_is(state: Weights, folder: Path) -> Weights:
    return state


def by_checkpoint(state: Weights, folder: Path) -> Weights:
    checkpoint.save(folder / "a.safetensors", state, {})
    return read(folder / "a.safetensors")


def by_npz(state: Weights, folder: Path) -> Weights:
    np.savez(folder / "a.npz", **state)
    return read(folder / "a.npz")


@pytest.mark.parametrize("way", [as_it_is, by_checkpoint, by_npz])
@pytest.mark.parametrize("theirs", OPTIONS)
def test_the_same_function_or_an_error(way: Any, theirs: dict[str, bool], tmp_path: Path) -> None:
    model = make(1, **theirs)
    expected, state = model.logits(images()).data, way(model.state_dict(), tmp_path)
    for mine in OPTIONS:
        for load in (
            lambda m: m.load_state_dict(state),
            lambda m: m.load_state_dict(state, strict=False),
            lambda m: import_state(m, state),
            lambda m: import_state(m, state, source="invocupy"),
            lambda m: import_state(m, state, source="article"),
        ):
            other = make(2, **mine)
            before = other.logits(images()).data
            if mine == theirs:
                load(other)
                assert (other.logits(images()).data == expected).all()
            else:
                option = next(name for name in mine if mine[name] != theirs[name])
                way_out = re.escape(f"SimpleModel({option}={theirs[option]})")
                with pytest.raises(ValueError, match=way_out):
                    load(other)
                assert (other.logits(images()).data == before).all()


@pytest.mark.parametrize("options", OPTIONS)
def test_copies_keep_the_function(options: dict[str, bool]) -> None:
    model = make(1, **options)
    other = copy.deepcopy(model)
    assert other.head_relu is options["head_relu"]
    assert (other.logits(images()).data == model.logits(images()).data).all()


DENSE = {
    True: [(), ("dense_network.8", "dense_network.10", "dense_network.12"), ("0", "3", "6")],
    False: [(), ("dense_network.8", "dense_network.9", "dense_network.10"), ("0", "1", "2")],
}


@pytest.mark.parametrize(("head", "dense"), [(h, names) for h in DENSE for names in DENSE[h]])
def test_numbers_in_the_names_say_whether_there_are_relus(
    head: bool, dense: tuple[str, ...]
) -> None:
    model = make(1, head_relu=head)
    state = of_the_article(model, dense)
    if dense:  # as files list them that sort names as text
        state = dict(sorted(state.items()))
    other = make(2, head_relu=head)
    import_state(other, state)
    assert (other.logits(images()).data == model.logits(images()).data).all()
    with pytest.raises(ValueError, match=f"head_relu={head}"):
        import_state(make(2, head_relu=not head), state)
    with pytest.raises(ValueError, match="signed=False"):
        import_state(make(2, head_relu=head, signed=True), state)


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("dense", [("fc1", "fc2", "fc3"), ("a.0", "b.1", "c.2"), ("x", "y", "z")])
def test_other_names_leave_the_choice_to_the_model(head: bool, dense: tuple[str, ...]) -> None:
    state = of_the_article(make(1), dense)
    model, other = make(2, head_relu=head), make(1, head_relu=head)
    import_state(model, state)
    assert model.head_relu is head
    assert (model.logits(images()).data == other.logits(images()).data).all()


def test_a_head_with_one_activation_is_refused() -> None:
    for dense in (("d.0", "d.2", "d.3"), ("d.0", "d.1", "d.3")):
        for head in (True, False):
            with pytest.raises(ValueError, match="an activation between two of them only"):
                import_state(make(head_relu=head), of_the_article(make(), dense))


def test_a_port_of_the_listing_whose_head_is_named_as_ours() -> None:
    for head in (True, False):
        model, other = make(1, head_relu=head), make(2, head_relu=head)
        places = ("head.0", "head.2", "head.4") if head else ("head.0", "head.1", "head.2")
        import_state(other, of_the_article(model, places))
        assert (other.logits(images()).data == model.logits(images()).data).all()


def test_a_run_keeps_its_head(tmp_path: Path) -> None:
    config = Config(layers=0, epochs=2, limit=20, batch_size=10, device="cpu", ema=0.5)
    fit(replace(config, head_relu=False), tmp_path)
    _, model, _ = load_run(tmp_path)
    assert isinstance(model, SimpleModel)
    assert model.head_relu is False
    # Settings that contradict the weights: as if somebody had changed the file by hand.
    arrays, info = checkpoint.load(tmp_path / "best.safetensors")
    info["config"]["head_relu"] = True
    checkpoint.save(tmp_path / "best.safetensors", arrays, info)
    with pytest.raises(checkpoint.CheckpointError, match="head_relu=False"):
        load_run(tmp_path)


# ---------------------------------------------------------------------------- the command


def command(folder: Path, state: Weights, *options: str) -> int:
    np.savez(folder / "their.npz", **state)
    out = str(folder / "ours.safetensors")
    return main(["import", str(folder / "their.npz"), "--model", "simple", "--out", out, *options])


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("own_names", [True, False])
def test_import_finds_the_sizes(
    head: bool, own_names: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make(1, head_relu=head, height=16, width=16)
    state = model.state_dict() if own_names else of_the_article(model)
    assert command(tmp_path, state, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    options = {**SIZES, "height": 16, "width": 16, "head_relu": head, "signed": False}
    options["classes"] = options.pop("num_classes")
    assert {name: result[name] for name in options} == options
    assert result["parameters"] == sum(p.size for p in model.parameters())
    other = make(2, head_relu=head, height=16, width=16)
    import_state(other, read(tmp_path / "ours.safetensors"))
    x = np.random.default_rng(0).normal(size=(2, 3, 16, 16))
    expected = make(3, head_relu=head, height=16, width=16)
    # The command's model is in float32.
    expected.load_state_dict({n: np.float32(a) for n, a in model.state_dict().items()})
    assert (other.logits(x).data == expected.logits(x).data).all()


def test_import_of_the_article_s_full_size(tmp_path: Path) -> None:
    assert command(tmp_path, of_the_article(SimpleModel(rng=0))) == 0
    model, other = SimpleModel(rng=0), SimpleModel(rng=1)
    import_state(other, read(tmp_path / "ours.safetensors"))
    ours, theirs = model.state_dict(), other.state_dict()
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_import_asks_where_the_names_do_not_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = of_the_article(make(), ("fc1", "fc2", "fc3"))
    assert command(tmp_path, state) == 65
    assert "fc1, fc2, fc3" in (error := capsys.readouterr().err)
    assert "give head_relu" in error
    for head in (True, False):
        assert command(tmp_path, state, "--head-relu" if head else "--no-head-relu", "--json") == 0
        assert json.loads(capsys.readouterr().out)["head_relu"] is head
    assert command(tmp_path, of_the_article(make()), "--no-head-relu") == 65
    assert "head_relu=True" in capsys.readouterr().err
    file = str(tmp_path / "their.npz")
    arguments = ["--model", "resnet18", "--head-relu", "--out", str(tmp_path / "x.safetensors")]
    assert main(["import", file, *arguments]) == 2


WRONG: dict[str, Any] = {
    "nothing": lambda s: {},
    "other": lambda s: {"a": np.ones(3)},
    "a block is missing": lambda s: {n: a for n, a in s.items() if not n.startswith("layers.0.")},
    "a number beyond the blocks": lambda s: s | {"layers.1000000.0.weight": np.ones((32, 3, 1, 1))},
    "no square": lambda s: s | {"dense_network.0.weight": np.ones((500, 3 * 63))},
    "many pixels without bytes": lambda s: s | {"dense_network.0.weight": np.ones((0, 3 * 10**12))},
    "many pixels": lambda s: s | {"dense_network.0.weight": np.ones((1, 3 * 10**6))},
    "wide blocks": lambda s: s | {"layers.0.0.weight": np.ones((160_000, 3, 1, 1))},
    "duplicates that differ": lambda s: s | {"layers.0.3.BN.bias": np.full(8, 9.0)},
    "an activation too few": lambda s: {n.replace("work.4", "work.3"): a for n, a in s.items()},
}


@pytest.mark.parametrize("kind", WRONG)
def test_import_refuses(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path, WRONG[kind](of_the_article(make()))) == 65
    error = capsys.readouterr().err
    assert "has no weights of simple" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "ours.safetensors").exists()


@pytest.mark.parametrize("head", [[], ["--head-relu"], ["--no-head-relu"]])
def test_import_of_blocks_without_a_head(
    head: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = of_the_article(SimpleModel(num_layers=2, hidden_channels=32, rng=0))
    blocks = {name: array for name, array in state.items() if name.startswith("layers")}
    assert command(tmp_path, blocks, *head) == 65
    assert "head.0.weight: missing" in capsys.readouterr().err
    assert command(tmp_path, blocks, *head, "--no-strict", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["num_layers"] == 2
    assert result["missing"][0] == "head.0.weight"
    assert "classes" not in result  # nothing in the file says how many
    assert len(read(tmp_path / "ours.safetensors")) == result["arrays"]


def test_import_of_another_network_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tmp_path, resnet18(rng=0).state_dict()) == 65
    assert "41 layers besides blocks of the article's network" in capsys.readouterr().err
