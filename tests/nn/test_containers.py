"""Containers: lists and sequences of modules, and plain ones that would lose theirs."""

from __future__ import annotations

import copy
from collections import UserDict, UserList, deque
from functools import partial
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from invocupy import functional as F  # noqa: N812
from invocupy import nn


def linear(seed: int = 0) -> nn.Linear:
    return nn.Linear(2, 2, rng=np.random.default_rng(seed))


class Net(nn.Module):
    """One of each kind; as usual here, without a call of Module.__init__."""

    def __init__(self) -> None:
        self.layer = linear()
        self.norm = nn.BatchNorm2d(2)
        self.scale = nn.Parameter(np.ones(2))
        self.sizes = (1, 2)


# ---------------------------------------------------------------------------- members of containers


@pytest.mark.parametrize(
    "wrong", [[nn.ReLU()], F.relu, nn.ReLU, None, "relu", 3, np.ones(2), nn.Parameter(np.ones(2))]
)
def test_members_must_be_modules(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"the members of Sequential must be modules.*number 1 is"):
        nn.Sequential(linear(), wrong)
    layers = nn.ModuleList([nn.ReLU(), linear()])
    before = list(layers)
    for change in (
        lambda: layers.append(wrong),
        lambda: layers.insert(0, wrong),
        lambda: layers.extend([nn.ReLU(), wrong]),
        lambda: layers.__setitem__(0, wrong),
        lambda: layers.__setitem__(slice(0, 2), [wrong]),
    ):
        with pytest.raises(TypeError, match="the members of ModuleList must be modules"):
            change()
        assert list(layers) == before
    for modules in (3, nn.ReLU(), None):
        with pytest.raises(TypeError, match="modules must be an iterable of modules"):
            nn.ModuleList(modules)  # type: ignore[arg-type]


PLACES = st.integers(-4, 4)
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["append", "insert", "set", "del", "pop"]), PLACES),
        st.tuples(st.sampled_from(["extend", "cut", "drop"]), PLACES),
    ),
    max_size=8,
)


@given(CHANGES, st.integers(0, 3))
def test_a_module_list_is_a_list(changes: list[tuple[str, int]], size: int) -> None:
    """Whatever is done to it: the same members as a list, and names that count them."""
    layers = nn.ModuleList(nn.Identity() for _ in range(size))
    model, wanted = list(layers), layers

    def act(modules: Any, change: str, place: int, new: nn.Module) -> Any:
        if change == "append":
            modules.append(new)
        elif change == "extend":
            modules.extend([new, new])
        elif change == "insert":
            modules.insert(place, new)
        elif change == "set":
            modules[place] = new
        elif change == "del":
            del modules[place]
        elif change == "drop":
            del modules[place:]
        elif change == "pop":
            modules.pop(place)
        else:
            return modules[place:]
        return modules

    for change, place in changes:
        new = nn.Identity()
        try:
            model = act(model, change, place, new)
        except IndexError:
            with pytest.raises(IndexError):
                act(wanted, change, place, new)
        else:
            wanted = act(wanted, change, place, new)
        assert [id(m) for m in wanted] == [id(m) for m in model]
        assert [name for name, _ in wanted.named_children(remove_duplicate=False)] == [
            str(i) for i in range(len(model))
        ]
        assert len(wanted) == len(model)
        assert isinstance(wanted, nn.ModuleList)


def test_a_member_taken_out_by_name_leaves_no_gap_to_fall_into() -> None:
    layers = nn.ModuleList([linear(0), linear(1), linear(2)])
    last = layers[2]
    delattr(layers, "0")
    layers.append(nn.ReLU())
    assert [type(m).__name__ for m in layers] == ["Linear", "Linear", "ReLU"]
    assert layers[1] is last
    assert list(layers.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_slices_compute() -> None:
    x = np.array([[-1.0, 2.0]], np.float32)
    first, second = linear(0), linear(1)
    whole = nn.Sequential(first, nn.ReLU(), second).eval()
    part = whole[:2]
    assert type(part) is nn.Sequential
    assert part[0] is first
    assert not part.training
    np.testing.assert_array_equal(part(x).data, np.maximum(first(x).data, 0))
    assert list(whole[2:].state_dict()) == ["0.weight", "0.bias"]
    assert len(whole) == 3
    np.testing.assert_array_equal(whole[::-1][0](x).data, second(x).data)


class Named(nn.Sequential):
    """A container with a member that has a name."""

    def __init__(self) -> None:
        super().__init__(nn.ReLU())
        self.extra = nn.Flatten()


def test_named_members_of_a_container_keep_their_names() -> None:
    layers = Named()
    layers.append(linear())
    assert [name for name, _ in layers.named_children()] == ["0", "extra", "2"]
    del layers[0]
    assert [name for name, _ in layers.named_children()] == ["extra", "1"]
    assert isinstance(layers.extra, nn.Flatten)


CONTAINERS = [
    lambda m: [m],
    lambda m: (m,),
    lambda m: {m},
    lambda m: {"a": m},
    lambda m: {m: "a"},
    lambda m: deque([m]),
    lambda m: [1, ("a", {"b": [m]})],
    lambda m: UserList([m]),
    lambda m: UserDict(a=m),
    lambda m: MappingProxyType({"a": (m,)}),
    lambda m: SimpleNamespace(a=[m]),
    lambda m: np.array([m, None], dtype=object),
    lambda m: partial(m),
    lambda m: partial(print, [m]),
    lambda m: partial(print, end=m),
]

# ---------------------------------------------------------------------------- assignments


@pytest.mark.parametrize("hide", CONTAINERS)
@pytest.mark.parametrize("member", [nn.ReLU(), nn.Parameter(np.ones(1)), nn.Buffer(np.ones(1))])
def test_plain_containers_are_refused(hide: Any, member: Any) -> None:
    net: Any = Net()
    try:
        hidden = hide(member)
    except TypeError:  # no hash
        return
    with pytest.raises(TypeError, match=r"Net.layers is a .* use nn.ModuleList"):
        net.layers = hidden
    assert not hasattr(net, "layers")
    with pytest.raises(TypeError, match=r"Wrong.layers holds modules or parameters"):
        type("Wrong", (nn.Module,), {"layers": hidden})


def test_containers_that_were_filled_later_are_found() -> None:
    net: Any = Net()
    net.layers = []
    net.layers.append(net.layers)  # no end
    assert len(net.state_dict()) == 8
    net.layers.append(linear())
    for act in (
        lambda: list(net.parameters()), net.state_dict, lambda: net.load_state_dict({}),
        lambda: list(net.buffers()), lambda: nn.Sequential(net).to("cpu"), net.zero_grad,
        net.eval, nn.Sequential(net).train,
    ):  # fmt: skip
        with pytest.raises(TypeError, match=r"Net.layers is a list that holds modules"):
            act()


def test_a_list_of_registered_modules_is_no_loss() -> None:
    net: Any = Net()
    net.order = [net.norm, (net.layer, net.layer.weight), {"a": net.scale}]
    assert len(net.state_dict()) == 8
    again = copy.deepcopy(net)
    assert again.order[0] is again.norm
    assert len(list(again.parameters())) == 5
    net.layer = linear(1)  # the list has the old one
    with pytest.raises(TypeError, match=r"Net.order is a list that holds"):
        net.state_dict()
    with pytest.raises(TypeError, match=r"Net.order is a list that holds"):
        again.order = [*again.order, linear()]
