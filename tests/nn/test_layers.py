"""Layers and SGD by their rules, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from invocupy import Tensor, nn, optim
from invocupy import functional as F  # noqa: N812

SEEDS = st.integers(0, 2**32 - 1)


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


@pytest.mark.parametrize("stride", [1, 2, (2, 1)])
@pytest.mark.parametrize("fused", [False, True])
def test_involution_layer_is_its_formula(stride: Any, fused: bool) -> None:
    layer = nn.Involution(32, (3, 5), stride=stride, dilation=2, fused=fused, rng=rng())
    layer.eval()
    x = rng().normal(size=(2, 32, 7, 9)).astype(np.float32)
    pool = {"ceil_mode": True, "count_include_pad": False}
    seen = x if stride == 1 else F.avg_pool2d(x, stride, stride, **pool)
    reduced = F.conv2d(seen, layer.reduce.weight.data, layer.reduce.bias.data)  # type: ignore[union-attr]
    features = np.maximum(reduced / np.sqrt(np.float32(1 + 1e-5)), 0)  # of a norm that is new
    flat = F.conv2d(features, layer.span.weight.data, layer.span.bias.data)  # type: ignore[union-attr]
    kernel = flat.reshape(2, 2, 3, 5, *flat.shape[2:])
    wanted = F.involution(x, kernel, stride=stride, dilation=2)
    # some hundred roundings of sums of a few units
    np.testing.assert_allclose(layer(x).data, wanted, atol=1e-4)


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
        (lambda: nn.Involution(32)(np.ones((32, 4, 4))), r"x must be \(N, C, H, W\)"),
        (lambda: nn.BatchNorm2d(3)(np.ones((4, 2, 3, 3))), r"x must be \(N, 3, H, W\)"),
        (lambda: nn.BatchNorm2d(3).eval()(np.ones((4, 2, 3, 3))), r"x must be \(N, 3, H, W\)"),
        (lambda: nn.BatchNorm2d(3)(np.ones((4, 3))), r"got shape \(4, 3\)"),
        (lambda: nn.BatchNorm2d(3)(np.ones((1, 3, 1, 1))), "more than one value a channel"),
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
    (nn.Involution, {"channels": 16, "reduction_ratio": 4, "channels_per_group": 16}),
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
    for wrong in (None, "0.1", True, 1j, np.ones(2), -0.1, np.nan, np.inf, 10**400):
        with pytest.raises(ValueError, match=f"{name} must be "):
            nn.BatchNorm2d(2, **{name: wrong})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"{name} must be "):
            setattr(nn.BatchNorm2d(2), name, wrong)


# ---------------------------------------------------------------------------- SGD


@given(SEEDS, st.sampled_from([0.0, 0.9]), st.booleans(), st.sampled_from([0.0, 0.01]))
def test_sgd_is_its_rule(seed: int, momentum: float, nesterov: bool, decay: float) -> None:
    """In float64, with a parameter that has no gradient for a while."""
    draw = np.random.default_rng(seed)
    values = [draw.normal(size=shape) for shape in ((3, 4), (5,), ())]
    params = [nn.Parameter(value) for value in values]
    nesterov = nesterov and momentum > 0
    sgd = optim.SGD(params, 0.1, momentum, decay, nesterov)
    velocities: list[Any] = [None] * 3
    for step in range(4):
        sgd.zero_grad()
        for i, parameter in enumerate(params):
            if i == 1 and step in (0, 2):
                continue
            grad = draw.normal(size=parameter.shape)
            parameter.grad = grad.copy()
            d = grad + decay * values[i]
            if momentum:
                velocities[i] = d if velocities[i] is None else momentum * velocities[i] + d
                d = d + momentum * velocities[i] if nesterov else velocities[i]
            values[i] = values[i] - 0.1 * d
        sgd.step()
    for parameter, value in zip(params, values, strict=True):
        np.testing.assert_allclose(parameter.data, value, rtol=1e-13, atol=1e-13)


def test_sgd_refuses() -> None:
    p = nn.Parameter(np.ones((2, 3), np.float32))
    for params, words in (
        (p, "got a single Tensor"),
        ([p, np.ones(2)], "got one of .'ndarray'"),
        (["weight"], "got one of .'str'"),
        ([{"params": [p]}], "one of .'dict'.*one SGD each"),
        (nn.Linear(2, 2), "got a single Linear"),
        (nn.Sequential(nn.Linear(2, 2)), "got one of .'Linear'"),
        (list(nn.Linear(2, 2).named_parameters()), "got one of .'tuple'"),
        (None, "got a single NoneType"),
    ):
        with pytest.raises(TypeError, match="params must be an iterable of Tensors.*" + words):
            optim.SGD(params, 0.1)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="params must be an iterable of Tensors.*" + words):
            optim.clip_by_norm(params, 0.1)  # type: ignore[arg-type]
    for wrong, words in (
        ([p, nn.Parameter(np.ones(1)), p], "number 2 is number 0 again"),
        ([p, p * 2], "number 1 was computed from others"),
        (iter(()), "at least one parameter"),
    ):
        with pytest.raises(ValueError, match=words):
            optim.SGD(wrong, 0.1)
    with pytest.raises(ValueError, match="params must hold at least one"):
        optim.SGD([], 0.1)
    with pytest.raises(ValueError, match="lr must be a finite number >= 0"):
        optim.SGD([p], -1)
    with pytest.raises(ValueError, match="nesterov needs a momentum"):
        optim.SGD([p], 0.1, nesterov=True)
    for grad in (np.ones(3, np.float32), np.ones((2, 3))):
        p.grad = grad
        with pytest.raises(ValueError, match="grad of parameter 0 must have its shape and dtype"):
            optim.SGD([p], 0.1).step()
    assert (p.data == 1).all()
    assert isinstance(p, Tensor)


OPTIONS = ("lr", "momentum", "weight_decay")
NUMBERS = [np.float64(0.5), np.float32(0.5), np.float16(0.5), np.longdouble(0.5), np.array(0.5)]


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("value", [*NUMBERS, np.array(0.5, np.float32), Tensor(0.5), 0.5])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_options_of_any_library_leave_the_dtype(name: str, value: Any, dtype: str) -> None:
    """To the bits that Python's number gives, given at once or assigned."""
    results = []
    for number in (0.5, value):
        options = {"lr": 0.25, "momentum": 0.75, "weight_decay": 0.125}
        params = [nn.Parameter(np.array(x, dtype)) for x in (3.0, [1.0, 2.0])]
        at_once = optim.SGD(params, **{**options, name: number})
        params = [nn.Parameter(np.array(x, dtype)) for x in (3.0, [1.0, 2.0])]
        later = optim.SGD(params, **options)
        setattr(later, name, number)
        for sgd in (at_once, later):
            assert type(getattr(sgd, name)) is float
            for _ in range(2):
                for p in sgd.params:
                    p.grad = np.ones_like(p.data)
                optim.clip_by_norm(sgd.params, number)
                sgd.step()
            assert {p.data.dtype for p in sgd.params} == {np.dtype(dtype)}
            results.append([p.data.tolist() for p in sgd.params])
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("name", OPTIONS)
def test_options_must_be_numbers(name: str) -> None:
    p = nn.Parameter(np.ones(2))
    sgd = optim.SGD([p], 0.1)
    for wrong in (None, "0.1", True, np.True_, 1j, [0.1], np.array([0.1]), np.array("0.1")):
        with pytest.raises(ValueError, match=f"{name} must be a finite number >= 0"):
            optim.SGD([p], **{"lr": 0.1, name: wrong})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"{name} must be a finite number >= 0"):
            setattr(sgd, name, wrong)
    for far in (np.nan, np.inf, -np.inf, np.float64("nan"), 10**400, -1e-9):
        with pytest.raises(ValueError, match=f"{name} must be a finite number >= 0"):
            setattr(sgd, name, far)


def test_schedules_of_numpy_leave_the_dtype() -> None:
    layer = nn.Linear(2, 2, rng=rng())
    sgd = optim.SGD(layer.parameters(), 0.1, 0.9)
    for step in range(3):
        sgd.lr = 0.05 * (1 + np.cos(np.pi * step / 3))
        sgd.zero_grad()
        (layer(Tensor(np.ones((1, 2), np.float32))) ** 2).sum().backward()
        sgd.step()
    assert layer.weight.dtype == sgd.velocities[0].dtype == np.float32


# ---------------------------------------------------------------------------- state of SGD


def stepped(seed: int) -> optim.SGD:
    """After a step of the first two of three parameters."""
    draw = np.random.default_rng(seed)
    params = [nn.Parameter(draw.normal(size=n).astype(np.float32)) for n in ((2, 3), (), 4)]
    sgd = optim.SGD(params, 0.1, 0.9)
    for p in params[:2]:
        p.grad = draw.normal(size=p.shape).astype(np.float32)
    sgd.step()
    return sgd


def test_sgd_continues_from_its_state() -> None:
    sgd = stepped(0)
    state = sgd.state_dict()
    assert {name: array.shape for name, array in state.items()} == {
        "velocities.0": (2, 3), "velocities.1": (),
    }  # fmt: skip
    again = optim.SGD([nn.Parameter(p.data) for p in sgd.params], 0.1, 0.9)
    again.load_state_dict(state)
    state["velocities.0"][...] = 7
    for optimiser in (sgd, again):
        for p in optimiser.params:
            p.grad = np.ones_like(p.data)
        optimiser.step()
    for one, other in zip(sgd.params, again.params, strict=True):
        np.testing.assert_array_equal(one.data, other.data)
    again.load_state_dict({})
    assert again.velocities == [None] * 3


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"velocities.0": np.ones(3)}, r"velocities.0: shape \(3,\), expected \(2, 3\)"),
        ({"velocities.1": np.array(1)}, "velocities.1: dtype int64, expected a floating dtype"),
        ({"velocities.2": [1.0, np.nan, 0, 0]}, "velocities.2: NaN or infinite"),
        ({"velocities.2": [1.0, np.inf, 0, 0]}, "velocities.2: NaN or infinite"),
        ({"velocities.3": np.ones(1)}, "velocities.3: left over"),
        ({"momentum": 0.9}, "momentum: left over"),
        ({0: np.ones(1)}, "0: left over"),
    ],
)
def test_sgd_refuses_a_state_that_does_not_fit(wrong: Any, words: str) -> None:
    sgd = stepped(0)
    held = list(sgd.velocities)
    with pytest.raises(ValueError, match=words):
        sgd.load_state_dict({**stepped(1).state_dict(), **wrong})
    assert all(one is other for one, other in zip(sgd.velocities, held, strict=True))
    with pytest.raises(TypeError, match="state must be a mapping"):
        sgd.load_state_dict([("velocities.0", np.ones(1))])  # type: ignore[arg-type]


def test_sgd_refuses_velocities_of_other_parameters() -> None:
    sgd = stepped(0)
    before = [p.data for p in sgd.params]
    for wrong in (np.ones(3, np.float32), np.ones((2, 3))):
        sgd.velocities[0] = wrong
        with pytest.raises(ValueError, match="velocity of parameter 0 must have its shape and"):
            sgd.step()
    assert all(p.data is data for p, data in zip(sgd.params, before, strict=True))


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
