"""SGD by its rule, its options and its state; clipping."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bounds import SEEDS
from hypothesis import given
from hypothesis import strategies as st

from invocupy import Tensor, nn, optim


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


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
        ({"params": [p]}, "a single dict.*into a list"),
        (nn.Linear(2, 2), "got a single Linear"),
        (nn.Sequential(nn.Linear(2, 2)), "got one of .'Linear'"),
        (list(nn.Linear(2, 2).named_parameters()), "got one of .'tuple'"),
        (None, "got a single NoneType"),
    ):
        with pytest.raises(TypeError, match="params must be an iterable of Tensors.*" + words):
            optim.SGD(params, 0.1)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="params must be an iterable of Tensors.*" + words):
            optim.clip_by_norm(params, 0.1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"one of .'dict'.*for groups pass sgd.params"):
        optim.clip_by_norm([{"params": [p]}], 0.1)  # type: ignore[list-item]
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
    for name in ("nesterov", "decay_biases"):
        with pytest.raises(ValueError, match=f"{name} must be True or False, got 'false'"):
            optim.SGD([p], 0.1, 0.9, **{name: "false"})
    with pytest.raises(ValueError, match="nesterov needs a momentum"):
        optim.SGD([p], 0.1, nesterov=True)
    for grad in (np.ones(3, np.float32), np.ones((2, 3))):
        p.grad = grad
        with pytest.raises(ValueError, match="grad of parameter 0 must have its shape and dtype"):
            optim.SGD([p], 0.1).step()
    for other in ([1.0, 1.0], 1.0, Tensor(np.ones_like(p.data))):
        p.grad = other
        for use in (optim.SGD([p], 0.1).step, lambda: optim.clip_by_norm([p], 1.0)):
            with pytest.raises(
                TypeError, match="grad of parameter 0 must be an array of numpy, got"
            ):
                use()
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


# ------------------------------------------------------------------------- schedules and the update


def test_biases_and_norms_may_stay_without_decay() -> None:
    """Without gradients only the decay moves a parameter."""
    for decay_biases in (True, False):
        model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Linear(3, 2))
        before = model.state_dict()
        for parameter in model.parameters():
            parameter.grad = np.zeros_like(parameter.data)
        optim.SGD(
            model.parameters(), 1.0, weight_decay=0.5, decay_biases=decay_biases
        ).step()  # fmt: skip
        for name, parameter in model.named_parameters():
            decays = decay_biases or name in ("0.weight", "2.weight")
            np.testing.assert_array_equal(parameter.data, before[name] * (0.5 if decays else 1))


@pytest.mark.parametrize("limit", [1e-3, 1.0, 1e3])
def test_clipping(limit: float, xp: Any) -> None:
    rng = np.random.default_rng(0)
    grads = [rng.standard_normal(shape).astype(np.float32) for shape in ((3, 4), (5,), ())]
    params = [nn.Parameter(xp.zeros(grad.shape, np.float32)) for grad in (*grads, grads[0])]
    for parameter, grad in zip(params, grads, strict=False):  # the last one has none
        parameter.grad = xp.asarray(grad)
    norm = optim.clip_by_norm(params, limit)
    wanted = np.sqrt(sum(np.sum(grad.astype(np.float64) ** 2) for grad in grads))
    assert float(norm) == pytest.approx(wanted, rel=1e-12)
    factor = min(1, limit / (wanted + 1e-6))
    for parameter, grad in zip(params, grads, strict=False):
        assert parameter.grad.dtype == np.float32
        found = parameter.grad if xp is np else parameter.grad.get()
        np.testing.assert_allclose(found, grad * factor, rtol=2**-22)
    assert params[-1].grad is None


def test_clipping_nothing() -> None:
    assert float(optim.clip_by_norm([nn.Parameter(np.ones(2))], 1.0)) == 0
    for limit in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"limit must be (above 0|a finite)"):
            optim.clip_by_norm([], limit)
