"""Names, prefixes and options of other programs' weights: what fits is loaded, the rest is told."""

from __future__ import annotations

import doctest
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from invocupy import models, nn
from invocupy.cli import main
from invocupy.weights import Fit, WeightsError, import_state, read
from invocupy.weights.names import network_options

PREFIXES = [
    "_orig_mod.", "model.", "module.", "net.", "backbone.", "ema_model.", "network.", "encoder_q.",
    "module._orig_mod.", "_orig_mod.module.", "state_dict.model.net.", "ema_model.module.backbone.",
    "model.model.", "_forward_module.model.backbone._orig_mod.", "my.own.",
]  # fmt: skip


def tiny(kind: str = "resnet", seed: int = 0, **options: Any) -> Any:
    if kind == "rednet":
        return models.RedNet((1, 1, 1, 1), 10, rng=seed, **options)
    return models.ResNet(models.resnet.BasicBlock, (1, 1, 1, 1), 10, rng=seed, **options)


def own(seed: int = 0) -> Any:
    """A module of a user, with a name that is also a wrapper's."""
    rng = np.random.default_rng(seed)
    return nn.Sequential(nn.Linear(3, 4, rng=rng), nn.Sequential(nn.Linear(4, 2, rng=rng)))


class Wrapped(nn.Module):
    """A module of a user that is a wrapper itself."""

    def __init__(self, seed: int = 0) -> None:
        self.model, self.module = own(seed), own(seed + 1)
        self.net = nn.Linear(2, 2, rng=np.random.default_rng(seed))


def article(seed: int = 0) -> Any:
    return models.SimpleModel(num_layers=1, height=4, width=4, hidden_channels=16, rng=seed)


MAKE = {"resnet": tiny, "rednet": lambda seed=0: tiny("rednet", seed), "own": own,
        "wrapped": Wrapped, "article": article}  # fmt: skip


def same(one: Any, other: Any) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all((ours[n] == theirs[n]).all() for n in ours)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("kind", MAKE)
def test_prefixes_in_any_combination(kind: str, prefix: str) -> None:
    model: Any = MAKE[kind](seed=1)
    state = {f"{prefix}{name}": array for name, array in model.state_dict().items()}
    forms: list[dict[str, Any]] = [
        state,
        {"n_averaged": np.array(5), **state},
        {"state_dict": state, "epoch": 3, "args": object()},
        {"checkpoint": {"model_state_dict": state}, "optimizer": {"state": {0: {}}}},
        {"ema": state},
    ]
    for checkpoint in forms if kind == "own" else forms[:1]:
        other: Any = MAKE[kind](seed=2)
        assert import_state(other, checkpoint) == Fit([], [])
        assert same(model, other)


def test_wrappers_inside_of_names() -> None:
    """A part of the network that was compiled or wrapped by itself, and a head outside."""
    model, other = tiny(seed=1), tiny(seed=2)
    state = {
        re.sub(r"^(layer\d)\.", r"backbone.\1._orig_mod.module.", name): array
        for name, array in model.state_dict().items()
    }
    import_state(other, state)
    assert same(model, other)


def test_two_arrays_of_one_name_are_an_error() -> None:
    state = tiny().state_dict()
    doubled = {f"model.{n}": a for n, a in state.items()} | {"ema.fc.bias": state["fc.bias"] + 1}
    with pytest.raises(ValueError, match=r"two different arrays for fc\.bias: .* ema\.fc\.bias"):
        import_state(tiny(), doubled)


def test_names_of_resnets_for_cifar() -> None:
    model, other = tiny(stem="cifar", seed=1), tiny(stem="cifar", seed=2)
    state = {
        re.sub(r"^fc\.", "linear.", name.replace(".downsample.", ".shortcut.")): array
        for name, array in model.state_dict().items()
    }
    import_state(other, {"net": {f"module.{name}": array for name, array in state.items()}})
    assert same(model, other)


@pytest.mark.parametrize("kind", ["resnet", "rednet"])
def test_a_backbone_without_a_head(kind: str) -> None:
    model, other = tiny(kind, 1), tiny(kind, 2)
    head = other.state_dict()["fc.weight"]
    state = {f"backbone.{n}": a for n, a in model.state_dict().items() if not n.startswith("fc.")}
    state |= {"neck.0.weight": np.ones(3, np.float32), "rpn_head.bias": np.ones(1, np.float32)}
    with pytest.raises(ValueError, match=r"fc\.weight: missing.*neck\.0\.weight: left over"):
        import_state(other, state)
    fit = import_state(other, state, strict=False)
    assert fit == Fit(["fc.weight", "fc.bias"], ["neck.0.weight", "rpn_head.bias"])
    ours, theirs = other.state_dict(), model.state_dict()
    assert all((ours[n] == theirs[n]).all() for n in ours if not n.startswith("fc."))
    assert (ours["fc.weight"] == head).all()


def test_something_must_fit_even_if_not_strict() -> None:
    with pytest.raises(ValueError, match="none of the module's names"):
        import_state(tiny(), {"other.weight": np.ones(3)}, strict=False)
    with pytest.raises(ValueError, match="shape"):
        import_state(own(), {"0.weight": np.ones((3, 3))}, strict=False)


@pytest.mark.parametrize(
    ("theirs", "mine", "words"),
    [
        (tiny("rednet", stem_kernel_size=7), tiny("rednet"), "build it with stem_kernel_size=7"),
        (tiny("rednet"), tiny("rednet", stem_kernel_size=7), "build it with stem_kernel_size=3"),
        (tiny(stem="cifar"), tiny(), "build it with stem='cifar'"),
        (tiny(), tiny(stem="cifar"), "build it with stem='imagenet'"),
        (tiny(in_channels=1), tiny(), "build it with in_channels=1"),
        (models.RedNet((1, 1, 1, 1), 7), tiny("rednet"), "build it with num_classes=7"),
    ],
)
def test_another_option_is_named(theirs: Any, mine: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        import_state(mine, theirs.state_dict())


def test_stem_with_a_larger_involution() -> None:
    """As the authors have it in their backbones for detection and segmentation."""
    model = models.rednet26(stem_kernel_size=7, rng=0)
    assert model.stem.conv2.span.weight.shape == (2 * 49, 8, 1, 1)
    # 40 more taps of two groups, each with a bias and weights for 8 features
    assert sum(p.size for p in model.parameters()) == 9_233_166 + 2 * 40 * (8 + 1)
    small = tiny("rednet", stem="cifar", stem_kernel_size=7).eval()
    assert small(np.ones((1, 3, 9, 8), np.float32)).shape == (1, 10)
    wrong: Any
    for wrong in (0, -1, 3.0, True, "3", 4):
        rule = "odd" if wrong == 4 else "an integer >= 1"
        with pytest.raises(ValueError, match=f"stem_kernel_size must be {rule}"):
            models.rednet26(stem_kernel_size=wrong)


def test_states_that_are_none() -> None:
    for wrong in (3, [np.ones(2)], {"a": {"x": np.ones(2)}, "b": 3}, {"epoch": 3}, None):
        with pytest.raises(WeightsError, match="state is refused: it h"):
            import_state(own(), wrong)  # type: ignore[arg-type]

    with pytest.raises(WeightsError, match=r"NoneType under '0\.bias', where a weight is needed"):
        import_state(own(), own().state_dict() | {"0.bias": None})

    class Broken:
        shape = (4,)

        def __array__(self, *_: Any, **__: Any) -> Any:
            raise TypeError("on another\ndevice")

    state = own().state_dict() | {"0.bias": Broken()}
    with pytest.raises(ValueError, match=r"0\.bias: a Broken that NumPy cannot read \(on ano"):
        import_state(own(), state)


def test_import_finds_the_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "ours.safetensors"
    model = models.resnet18(num_classes=10, stem="cifar", rng=1)
    np.savez(tmp_path / "w.npz", **{f"model.{n}": a for n, a in model.state_dict().items()})
    command = ["import", str(tmp_path / "w.npz"), "--model", "resnet18", "--out", str(out)]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stem"] == "cifar"
    other = models.resnet18(num_classes=10, stem="cifar", rng=2)
    import_state(other, read(out))
    assert same(model, other)
    assert main([*command[:3], "rednet26", *command[4:]]) == 65
    assert main([*command, "--key", "ema"]) == 65
    assert "nothing under key='ema'" in capsys.readouterr().err


def test_a_small_file_makes_no_large_network() -> None:
    state = tiny(seed=1).state_dict()
    many = np.broadcast_to(np.float32(0), (2**40, 1))
    for name, option, array in (
        ("fc.weight", "num_classes", many),
        ("fc.weight", "num_classes", many[0, 0]),
        ("conv1.weight", "in_channels", many.T[..., None, None]),
        ("conv1.weight", "in_channels", np.zeros((64, 3, 7), np.float32)),
        ("conv1.weight", "in_channels", many[0, 0]),
    ):
        assert option not in network_options(state | {name: array})
    assert network_options({}) == {}
    assert network_options(state) == {"num_classes": 10, "in_channels": 3, "stem": "imagenet"}


def test_import_of_a_backbone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "ours.safetensors"
    model = models.rednet26(stem_kernel_size=7, rng=1)
    state = {f"backbone.{n}": a for n, a in model.state_dict().items() if not n.startswith("fc.")}
    np.savez(tmp_path / "w.npz", **state, **{"neck.bias": np.ones(1)})
    command = ["import", str(tmp_path / "w.npz"), "--model", "rednet26", "--out", str(out)]
    assert main(command) == 65
    assert "(--no-strict writes what fits)" in capsys.readouterr().err
    assert not out.exists()
    assert main([*command, "--no-strict"]) == 0
    told = capsys.readouterr().out
    assert "stem_kernel_size=7" in told
    assert "missing: fc.weight, fc.bias" in told
    assert "left over: neck.bias" in told
    assert "fc.weight" not in read(out)
    other = models.rednet26(stem_kernel_size=7, rng=2)
    assert import_state(other, read(out), strict=False).missing == ["fc.weight", "fc.bias"]
    ours, theirs = other.state_dict(), model.state_dict()
    assert all((ours[n] == theirs[n]).all() for n in ours if not n.startswith("fc."))


class Layer:
    """What the conversion uses of a Keras layer."""

    def __init__(self, *arrays: np.ndarray) -> None:
        self.arrays = arrays
        self.layers = arrays

    def get_weights(self) -> Any:
        return self.arrays


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_conversion_from_keras_in_the_documentation(groups: int) -> None:
    """Against Keras' formula: patches (H, W, K*K, C//G, G) times kernel (H, W, K*K, 1, G)."""
    page = Path(__file__).parents[2].joinpath("docs", "porting.md").read_text("utf-8")
    examples = doctest.DocTestParser().get_examples(page)
    (source,) = (e.source for e in examples if e.source.startswith("def from_keras"))
    namespace: dict[str, Any] = {"np": np}
    exec(source, namespace)  # noqa: S102

    rng = np.random.default_rng(0)
    c, k, h, w = 8, 3, 5, 6
    sizes = [(1, 1, c, 2), (2,)], [(2,)] * 4, [], [(1, 1, 2, k * k * groups), (k * k * groups,)]
    first, norm, relu, last = ([rng.random(size) for size in some] for some in sizes)
    x = rng.standard_normal((h, w, c))
    y = x @ first[0][0, 0] + first[1]
    y = (y - norm[2]) / np.sqrt(norm[3] + 1e-3) * norm[0] + norm[1]
    kernel = np.maximum(y, 0) @ last[0][0, 0] + last[1]
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    patches = [padded[i : i + h, j : j + w] for i in range(k) for j in range(k)]
    patches = np.stack(patches, 2).reshape(h, w, k * k, c // groups, groups)
    expected = (patches * kernel.reshape(h, w, k * k, 1, groups)).sum(2).reshape(h, w, c)

    layer = nn.Involution(c, k, channels_per_group=c // groups).eval()
    order = namespace["from_keras"](layer, Layer(*(Layer(*a) for a in (first, norm, relu, last))))
    out = np.asarray(layer(x.transpose(2, 0, 1)[None, order].astype(np.float32)).data)[0]
    wrong = np.abs(out - expected.transpose(2, 0, 1)[order]).max()
    assert wrong <= 100 * 2.0**-24 * np.abs(expected).max()  # sums of up to 9 * 8 terms


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("fc.weight", np.ones((10, 512), np.uint16)),
        ("fc.weight", np.ones((10, 512), np.int64)),
        ("fc.bias", np.ones(10, bool)),
        ("bn1.bias", np.ones(64, np.complex64)),
        ("bn1.running_var", -np.ones(64, np.float32)),
        ("bn1.running_var", np.full(64, np.nan, np.float32)),
        ("bn1.num_batches_tracked", np.array(0.5)),
    ],
)
def test_what_cannot_be_a_weight_is_refused(name: str, array: Any, tmp_path: Path) -> None:
    model = tiny()
    before = model.state_dict()
    state = before | {name: array}
    with pytest.raises(ValueError, match=re.escape(name)):
        import_state(model, {f"module.{n}": a for n, a in state.items()})
    after = model.state_dict()
    assert all((before[n] == after[n]).all() for n in before)


@pytest.mark.parametrize("name", ["layer1.0.bn1.running_var", "fc.weight"])
def test_import_names_what_cannot_be_a_weight(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = models.resnet18(num_classes=2, rng=0).state_dict()
    state[name] = -state[name] if name.endswith("var") else state[name].astype(np.uint16)
    np.savez(tmp_path / "w.npz", **state)
    out = tmp_path / "out.safetensors"
    assert main(["import", str(tmp_path / "w.npz"), "--model", "resnet18", "--out", str(out)]) == 65
    assert name in capsys.readouterr().err
    assert not out.exists()
