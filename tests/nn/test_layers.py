"""Layers by their rules, and what they refuse."""

from __future__ import annotations

import re
from inspect import signature
from typing import Any

import numpy as np
import pytest
from bounds import SEEDS
from hypothesis import given
from hypothesis import strategies as st

from invocupy import Tensor, nn
from invocupy import functional as F  # noqa: N812
from invocupy.testing import gradcheck


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# ---------------------------------------------------------------------------- names and state


@pytest.mark.parametrize(
    ("layer", "state"),
    [
        (nn.Conv2d(4, 6, (3, 5), groups=2), {"weight": (6, 2, 3, 5), "bias": (6,)}),
        (nn.Conv2d(4, 6, 1, bias=False), {"weight": (6, 4, 1, 1)}),
        (nn.Linear(3, 2), {"weight": (2, 3), "bias": (2,)}),
        (
            nn.BatchNorm2d(3),
            {
                "weight": (3,),
                "bias": (3,),
                "running_mean": (3,),
                "running_var": (3,),
                "num_batches_tracked": (),
            },
        ),
    ],
)
def test_state_has_the_names_of_pytorch(layer: nn.Module, state: dict[str, Any]) -> None:
    found = layer.state_dict()
    assert {name: array.shape for name, array in found.items()} == state
    assert list(found) == list(state)
    whole = nn.Sequential(nn.ReLU(), layer)
    assert list(whole.state_dict()) == [f"1.{name}" for name in state]


def test_state_is_copied_and_loaded_whole_or_not_at_all() -> None:
    layer = nn.Linear(2, 2, rng=rng())
    state = layer.state_dict()
    state["weight"][...] = 7
    assert not (layer.weight.data == 7).any()
    before = layer.state_dict()
    for wrong, words in (
        ({"weight": state["weight"]}, "bias: missing"),
        ({**state, "scale": np.ones(1)}, "scale: left over"),
        ({**state, "bias": np.ones(3)}, r"bias: shape \(3,\), expected \(2,\)"),
        (
            {**state, "bias": np.ones(2, complex)},
            "bias: dtype complex128, expected a floating dtype",
        ),
        ({**state, "bias": np.array(["1", "x"])}, "bias: dtype <U1, expected a floating dtype"),
        ({**state, "bias": np.ma.ones(2)}, "bias: a masked array, expected a plain one"),
    ):
        with pytest.raises(ValueError, match=words):
            layer.load_state_dict(wrong)
        for name, array in layer.state_dict().items():
            np.testing.assert_array_equal(array, before[name])
    layer.load_state_dict({"weight": [[7.0, 7], [7, 7]], "scale": np.ones(1)}, strict=False)
    assert (layer.weight.data == 7).all()
    assert layer.weight.data.dtype == np.float32


@pytest.mark.parametrize("layer", [nn.Linear(100, 400, rng=rng()), nn.Conv2d(4, 400, 5, rng=rng())])
def test_initial_weights_fill_their_interval(layer: Any) -> None:
    bound = 1 / np.sqrt(100)
    for parameter in layer.parameters():
        assert 0.95 * bound < abs(parameter.data).max() <= bound
        # of a uniform distribution: bound / sqrt(3); far outside of chance at 400 draws
        assert 0.85 < parameter.data.std() * np.sqrt(3) / bound < 1.15


# ---------------------------------------------------------------------------- batch norm


@given(SEEDS, st.sampled_from([0.1, 0.4]))
def test_running_statistics_follow_their_rule(seed: int, momentum: float) -> None:
    draw = np.random.default_rng(seed)
    norm = nn.BatchNorm2d(3, momentum=momentum)
    mean, var = np.zeros(3), np.ones(3)
    for _ in range(3):
        x = draw.normal(1, 2, (2, 3, 4, 5)).astype(np.float32)
        norm(x)
        mean = (1 - momentum) * mean + momentum * x.mean((0, 2, 3), np.float64)
        var = (1 - momentum) * var + momentum * x.var((0, 2, 3), np.float64, ddof=1)
    # float32 sums of 40 values of a few units, and a few roundings a batch
    np.testing.assert_allclose(norm.running_mean.data, mean, atol=1e-5)
    np.testing.assert_allclose(norm.running_var.data, var, rtol=1e-5)
    assert norm.num_batches_tracked.data == 3
    held = norm.running_mean.data
    norm.eval()(x)
    assert norm.running_mean.data is held


# ---------------------------------------------------------------------------- involution


LAYERS = {1: nn.Involution1d, 2: nn.Involution2d, 3: nn.Involution3d}
IMAGE, KERNEL = (4, 7, 9), (1, 3, 5)
in_all = pytest.mark.parametrize(
    ("dims", "stride"),
    [(1, 1), (1, 2), (2, 1), (2, 2), (2, (2, 1)), (3, 1), (3, 2), (3, (1, 3, 2))],
)


@in_all
@pytest.mark.parametrize("fused", [False, True])
def test_involution_layer_is_its_formula(dims: int, stride: Any, fused: bool) -> None:
    kernel_size = KERNEL[-dims:]
    options = {"stride": stride, "dilation": 2}
    layer = LAYERS[dims](32, kernel_size, fused=fused, rng=rng(), **options)
    layer.eval()
    x = rng().normal(size=(2, 32, *IMAGE[-dims:])).astype(np.float32)
    average, conv = (getattr(F, f"{name}{dims}d") for name in ("avg_pool", "conv"))
    pool = {"ceil_mode": True, "count_include_pad": False}
    seen = x if stride == 1 else average(x, stride, stride, **pool)
    reduced = conv(seen, layer.reduce.weight.data, layer.reduce.bias.data)  # type: ignore[union-attr]
    features = np.maximum(reduced / np.sqrt(np.float32(1 + 1e-5)), 0)  # of a norm that is new
    flat = conv(features, layer.span.weight.data, layer.span.bias.data)  # type: ignore[union-attr]
    kernel = flat.reshape(2, 2, *kernel_size, *flat.shape[2:])
    wanted = F.involution(x, kernel, **options)
    # some hundred roundings of sums of a few units
    np.testing.assert_allclose(layer(x).data, wanted, atol=1e-4)
    np.testing.assert_allclose(layer.kernel(x).data, kernel, atol=1e-5)


@in_all
@pytest.mark.parametrize("fused", [False, True])
def test_gradients_of_an_involution_layer(dims: int, stride: Any, fused: bool) -> None:
    layer = LAYERS[dims](4, 3, 2, 2, stride, fused=fused, rng=rng()).eval()
    names = [name for name, _ in layer.named_parameters()]
    parameters = [p.data.astype(np.float64) for p in layer.parameters()]

    def run(x: Any, *given: Any) -> Any:
        for name, parameter in zip(names, given, strict=True):
            holder, _, last = name.rpartition(".")
            vars(getattr(layer, holder))[last] = parameter
        return layer(x)

    gradcheck(run, rng().normal(size=(2, 4, *(2, 4, 5)[-dims:])), *parameters, seed=1)


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Conv2d(3, 4, 3, groups=2), "groups must divide in_channels"),
        (lambda: nn.Conv2d(3, 4, 0), "kernel_size must be an integer >= 1"),
        (lambda: nn.Conv2d(3, 4, 3, stride=0), "stride must be an integer >= 1"),
        (lambda: nn.Conv2d(3, 4, 3, dilation=1.5), "dilation must be an integer >= 1"),  # type: ignore[arg-type]
        (lambda: nn.Conv2d(3, 4, 3, padding="some"), "padding must be 'same'"),  # type: ignore[arg-type]
        (lambda: nn.Conv2d(3, 4, 2, padding="same"), "needs an odd kernel size"),
        (lambda: nn.Involution(30), "channels must be a multiple of channels_per_group"),
        (lambda: nn.Involution(32, 4), "kernel_size must be odd"),
        (lambda: nn.Involution(32, reduction_ratio=33), "reduction_ratio must be between"),
        (lambda: nn.BatchNorm2d(3, eps=-1e-5), "eps must be a finite number >= 0"),
        (lambda: nn.BatchNorm2d(3, momentum=1.5), r"momentum must be in \[0, 1\]"),
        (lambda: nn.Involution(32, fused="yes"), "fused must be True, False or 'auto'"),  # type: ignore[arg-type]
        (lambda: nn.Involution(32)(np.ones((32, 4, 4))), r"x must be \(N, 32, H, W\)"),
        (lambda: nn.BatchNorm2d(3)(np.ones((4, 2, 3, 3))), r"x must be \(N, 3, H, W\)"),
        (lambda: nn.BatchNorm2d(3).eval()(np.ones((4, 2, 3, 3))), r"x must be \(N, 3, H, W\)"),
        (lambda: nn.BatchNorm2d(3)(np.ones((4, 3))), r"got shape \(4, 3\)"),
        (lambda: nn.BatchNorm2d(3)(np.ones((1, 3, 1, 1))), "got one: .*, also as the last"),
        (
            lambda: nn.BatchNorm1d(3)(np.ones((4, 3, 2, 2))),
            r"x must be \(N, 3\) or \(N, 3, W\), got",
        ),
        (lambda: nn.BatchNorm3d(3)(np.ones((4, 3, 2, 2))), r"x must be \(N, 3, D, H, W\), got"),
        (
            lambda: nn.Conv3d(3, 4, (3, 3)),
            "kernel_size must be an integer >= 1 or a triple of them",
        ),
        (lambda: nn.Conv1d(3, 4, 2, padding="same"), "needs an odd kernel size, got 2"),
        (lambda: nn.Involution3d(32, stride=(2, 2)), "stride must be an integer >= 1 or a triple"),
        (lambda: nn.Involution1d(32)(np.ones((1, 32, 4, 4))), r"x must be \(N, 32, W\)"),
        (lambda: nn.Involution3d(32)(np.ones((1, 32, 4, 4))), r"x must be \(N, 32, D, H, W\)"),
        (lambda: nn.Linear(2, 2).to("gpu"), "device must be 'cpu', 'cuda' or 'cuda:i'"),
    ],
)
def test_layers_refuse(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


SIZES = [
    (nn.Linear, {"in_features": 2, "out_features": 2}),
    (nn.Conv2d, {"in_channels": 2, "out_channels": 2, "kernel_size": 1, "groups": 1}),
    (nn.BatchNorm2d, {"num_features": 2}),
    *((layer, dict.fromkeys(("channels", "channels_per_group"), 16)) for layer in LAYERS.values()),
    (nn.Involution, {"channels": 16, "reduction_ratio": 4, "channels_per_group": 16}),
    (nn.Conv1d, {"in_channels": 2, "out_channels": 2, "kernel_size": 1, "groups": 1}),
    (nn.Conv3d, {"in_channels": 2, "out_channels": 2, "kernel_size": 1, "groups": 1}),
]


@pytest.mark.parametrize(
    ("make", "sizes", "name"), [(make, sizes, name) for make, sizes in SIZES for name in sizes]
)
def test_sizes_are_integers_above_zero(make: Any, sizes: dict[str, int], name: str) -> None:
    for wrong in (0, -1, 2.0, True, np.True_, None, "2", [2], np.ones(1)):
        if name == "kernel_size" and wrong == [2]:
            continue
        with pytest.raises(ValueError, match=f"{name} must be"):
            make(**{**sizes, name: wrong})
    layer = make(**{key: np.int64(value) for key, value in sizes.items()})
    shapes = [array.shape for array in make(**sizes).state_dict().values()]
    assert [array.shape for array in layer.state_dict().values()] == shapes
    if hasattr(layer, "groups"):
        assert type(layer.groups) is int


def test_random_generators_are_no_seeds() -> None:
    with pytest.raises(TypeError, match=r"rng must be a numpy.random.Generator, got 0"):
        nn.Linear(2, 2, rng=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["eps", "momentum"])
def test_numbers_of_a_norm_are_pythons(name: str) -> None:
    x = rng().normal(size=(4, 2, 3, 3)).astype(np.float32)
    for value in (np.float64(0.25), np.float32(0.25), np.array(0.25), Tensor(0.25), 0.25):
        norm = nn.BatchNorm2d(2, **{name: value})
        assigned = nn.BatchNorm2d(2)
        setattr(assigned, name, value)
        for layer in (norm, assigned):
            assert type(getattr(layer, name)) is float
            assert layer(x).dtype == np.float32
            assert layer.running_var.data.dtype == np.float32
    for wrong in ("0.1", True, 1j, np.ones(2), -0.1, np.nan, np.inf, 10**400):
        with pytest.raises(ValueError, match=f"{name} must be "):
            nn.BatchNorm2d(2, **{name: wrong})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"{name} must be "):
            setattr(nn.BatchNorm2d(2), name, wrong)


# ---------------------------------------------------------------------------- state of SGD


def test_a_module_is_shown_as_a_tree() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), nn.MaxPool2d(2, 2))
    assert repr(model).splitlines() == [
        "Sequential(",
        "  (0): Sequential(",
        "    (0): Linear(weight=(2, 3), bias=(2,))",
        "    (1): ReLU()",
        "  )",
        "  (1): MaxPool2d(kernel_size=2, stride=2, padding=0)",
        ")",
    ]
    assert "running_mean=(4,)" in repr(nn.BatchNorm2d(4))


# ---------------------------------------------------------------------------- dimensions


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_layers_of_each_number_of_dimensions(dims: int) -> None:
    x = rng().normal(size=(2, 4, *(4, 5, 6)[-dims:])).astype(np.float32)
    conv = getattr(nn, f"Conv{dims}d")(4, 6, 3, stride=2, padding=1, groups=2)
    result = getattr(F, f"conv{dims}d")(x, conv.weight, conv.bias, stride=2, padding=1, groups=2)
    assert conv.weight.shape == (6, 2, *[3] * dims)
    np.testing.assert_array_equal(conv(x).data, result.data)
    for name, options in (("MaxPool", {}), ("AvgPool", {"ceil_mode": True})):
        pool = getattr(nn, f"{name}{dims}d")(2, **options)
        function = getattr(F, f"{name[:3].lower()}_pool{dims}d")
        np.testing.assert_array_equal(pool(x), function(x, 2, **options))
    norm = getattr(nn, f"BatchNorm{dims}d")(4)
    np.testing.assert_array_equal(norm(x).data, F.batch_norm(x, training=True))
    assert list(norm.state_dict()) == list(nn.BatchNorm2d(4).state_dict())


def test_batch_norm_1d_takes_rows_of_features() -> None:
    x = rng().normal(size=(8, 4)).astype(np.float32)
    one, other = nn.BatchNorm1d(4)(x), nn.BatchNorm2d(4)(x[..., None, None])
    np.testing.assert_array_equal(one.data, other.data[..., 0, 0])


AXES = {1: "W", 2: "H, W", 3: "D, H, W"}


@pytest.mark.parametrize("dims", AXES)
def test_layers_say_which_number_of_dimensions_fits(dims: int) -> None:
    layers = {
        "16": getattr(nn, f"Involution{dims}d")(16),
        "C": getattr(nn, f"MaxPool{dims}d")(2),
    }
    if dims == 2:
        layers["C "] = nn.GlobalAvgPool2d()
    for channels, layer in layers.items():
        fits = f"(N, {channels.strip()}, {AXES[dims]}), got shape (1, 16"
        for other in {0, 1, 2, 3, 4} - {dims}:
            with pytest.raises(ValueError, match=re.escape(fits)):
                layer(np.ones((1, 16, *[4] * other), np.float32))


@pytest.mark.parametrize("dims", AXES)
@pytest.mark.parametrize("layer", ["Involution", "Conv", "MaxPool", "AvgPool"])
def test_layers_refuse_options_of_another_length_when_they_are_made(layer: str, dims: int) -> None:
    make = getattr(nn, f"{layer}{dims}d")
    sizes = {"Involution": {"channels": 16}, "Conv": {"in_channels": 4, "out_channels": 4}}
    known = [n for n in ("stride", "padding", "dilation") if n in signature(make).parameters]
    for name in ("kernel_size", *known):
        options = {"kernel_size": 3, **sizes.get(layer, {}), name: (1,) * (dims % 3 + 1)}
        with pytest.raises(ValueError, match=rf"^{name} must be an integer >= \d or a "):
            make(**options)
