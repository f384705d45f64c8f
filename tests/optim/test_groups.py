"""Groups of parameters: each is moved as an SGD of its own would, and all follow the schedule."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pytest
from bounds import SEEDS
from hypothesis import given, settings
from hypothesis import strategies as st

from invocupy import nn, optim

OPTIONS: dict[str, Any] = {
    "lr": st.sampled_from([0.0, 0.01, 0.3]),
    "momentum": st.sampled_from([0.5, 0.9]),
    "weight_decay": st.sampled_from([0.0, 0.1]),
    "nesterov": st.booleans(),
    "decay_biases": st.booleans(),
}
BASE: dict[str, Any] = {"lr": 0.2, "momentum": 0.8, "weight_decay": 0.05, "nesterov": True}


def fresh(draw: Any, xp: Any = np) -> list[nn.Parameter]:
    return [nn.Parameter(xp.asarray(draw.normal(size=shape))) for shape in ((2, 3), (4,), ())]


def move(sgd: optim.SGD, draw: Any, xp: Any = np) -> None:
    for parameter in sgd.params:
        parameter.grad = xp.asarray(draw.normal(size=parameter.shape))
    sgd.step()


def host(array: Any) -> Any:
    return array.get() if hasattr(array, "get") else array


GROUPS = st.lists(st.fixed_dictionaries({}, optional=OPTIONS), min_size=1, max_size=3)


@settings(max_examples=10)
@given(seed=SEEDS, groups=GROUPS)
def test_groups_are_sgds_of_their_own(seed: int, groups: list[dict[str, Any]], xp: Any) -> None:
    """With a schedule: a factor for all of them."""
    draws = [np.random.default_rng(seed) for _ in range(2)]
    ours, apart = ([fresh(draw, xp) for _ in groups] for draw in draws)
    sgd = optim.SGD(
        ({"params": iter(params), **group} for params, group in zip(ours, groups, strict=True)),
        **BASE,
    )
    others = [
        optim.SGD(params, **{**BASE, **group}) for params, group in zip(apart, groups, strict=True)
    ]
    lrs = [other.lr for other in others]
    for factor in (1.0, 0.5, 0.0, 0.25):
        sgd.lr = BASE["lr"] * factor
        move(sgd, draws[0], xp)
        for other, lr in zip(others, lrs, strict=True):
            other.lr = lr * factor
            move(other, draws[1], xp)
    for one, two in zip(chain(*ours), chain(*apart), strict=True):
        np.testing.assert_allclose(host(one.data), host(two.data), rtol=1e-13, atol=1e-13)


def test_options_of_a_group_may_be_set() -> None:
    a, b = (nn.Parameter(np.ones(2)) for _ in range(2))
    sgd = optim.SGD([{"params": [a], "lr": np.float32(0.5)}, {"params": [b]}], lr=1.0)
    sgd.groups[0].lr, sgd.groups[1].weight_decay = 0.25, 2.0
    for p in (a, b):
        p.grad = np.ones(2)
    sgd.step()
    assert a.data.tolist() == [0.75, 0.75]
    assert b.data.tolist() == [-2.0, -2.0]
    for name in ("lr", "momentum", "weight_decay"):
        with pytest.raises(ValueError, match=f"{name} must be a finite number >= 0, got -1"):
            setattr(sgd.groups[0], name, -1)
    with pytest.raises(AttributeError, match="params of a group cannot be replaced: create"):
        sgd.groups[0].params = ()  # it would go on with the others
    with pytest.raises(TypeError, match="tuple"):
        sgd.groups[0] = sgd.groups[1]  # type: ignore[index]
    with pytest.raises(ValueError, match="nesterov must be True or False, got 1"):
        sgd.groups[0].nesterov = 1  # type: ignore[assignment]


def test_the_state_has_the_groups() -> None:
    def made(lr: float) -> optim.SGD:
        first, second = (fresh(np.random.default_rng(i)) for i in range(2))
        groups = [
            {"params": first, "lr": lr, "nesterov": lr > 0.1}, {"params": second, "momentum": lr}
        ]  # fmt: skip
        return optim.SGD(groups, lr=0.1, momentum=0.9)

    one, two = made(0.2), made(0.02)
    kept = two.groups[0]
    move(one, np.random.default_rng(2))
    state = one.state_dict()
    assert {name: array.item() for name, array in state.items() if name[:6] == "groups"} == {
        "groups.0.params": 3, "groups.0.lr": 0.2, "groups.0.nesterov": True,
        "groups.1.params": 3, "groups.1.momentum": 0.2,
    }  # fmt: skip
    two.load_state_dict(state)
    assert two.groups[0] is kept
    for p, q in zip(one.params, two.params, strict=True):
        q.data = p.data
    for sgd in (one, two):
        move(sgd, np.random.default_rng(3))
    for p, q in zip(one.params, two.params, strict=True):
        np.testing.assert_array_equal(p.data, q.data)
    velocities = {name: array for name, array in state.items() if name[:6] != "groups"}
    three = made(0.3)
    three.load_state_dict(velocities)
    assert three.groups[0].lr == 0.3
    for change, words in (
        ({"groups.1.params": np.array(2)}, "groups.1.params: 2 parameters, expected 3"),
        ({"groups.1.params": np.ones(2)}, "groups.1.params: .*expected 3"),
        ({"groups.2.params": np.array(1)}, "groups.2.params: left over"),
        ({"groups.0.lr": np.array(-1.0)}, "groups.0: lr must be a finite number"),
        ({"groups.0.lr": np.ones(2)}, "groups.0: "),
        ({"groups.1.nesterov": True, "groups.1.momentum": 0.0}, "groups.1: nesterov needs a mom"),
        ({"groups.0.speed": np.array(1.0)}, "groups.0.speed: left over"),
    ):
        with pytest.raises(ValueError, match=words):
            three.load_state_dict({**state, **change})
        assert three.groups[0].lr == 0.3
    still = optim.SGD([{"params": three.groups[0].params}, {"params": three.groups[1].params}], 0)
    with pytest.raises(ValueError, match=r"groups\.0: lr must be above 0 if a group has its own"):
        still.load_state_dict(state)
    plain = optim.SGD(three.params, lr=0.1)
    assert plain.state_dict() == {}
    with pytest.raises(ValueError, match=r"groups\.0\.params: left over"):
        plain.load_state_dict(state)


def test_groups_that_are_refused() -> None:
    p, q = (nn.Parameter(np.ones((2, 3))) for _ in range(2))
    for wrong, kind, words in (
        ([{"params": [p]}, q], TypeError, "Tensors or groups, not both, but number 1 is a Param"),
        ([{"params": p}], TypeError, "group 0: params must be an iterable.*a single Tensor"),
        ([{"params": [p]}, {"params": [1]}], TypeError, "group 1: params must be .*'int'"),
        ([{"params": [p]}, {"params": []}], ValueError, "group 1: params must hold at least"),
        ([{"params": [p]}, {}], ValueError, "group 1 must have 'params', got"),
        ([{"params": [p, p]}], ValueError, "group 0: .*number 1 is number 0 again"),
        (
            [{"params": [q]}, {"params": [p, q]}],
            ValueError,
            r"\(2, 3\) is in group 0 and",
        ),
        ([{"params": [p], "momentun": 1}], ValueError, "'momentun': did you mean momentum"),
        ([{"params": [p], "lr": "1"}], ValueError, "group 0: lr must be a finite number"),
        ([{"params": [p], "nesterov": True}], ValueError, "nesterov needs a momentum > 0"),
        ([{"params": [p * 2]}], ValueError, "group 0: .*number 0 was computed from others"),
    ):
        with pytest.raises(kind, match=words):
            optim.SGD(wrong, lr=0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"lr must be above 0 if a group has its own, 0\.1"):
        optim.SGD([{"params": [p], "lr": 0.1}], lr=0.0)
