"""What modules hold: nothing is registered, replaced or dropped in silence."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

from invocupy import Tensor, nn, weights
from invocupy import functional as F  # noqa: N812


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


def test_one_module_at_two_places() -> None:
    shared = linear()
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias"]
    state = model.state_dict()
    assert list(state) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    state["2.bias"] = state["2.bias"] + 1
    before = model.state_dict()
    with pytest.raises(ValueError, match=r"2.bias: not equal to 0.bias, with which it is shared"):
        model.load_state_dict(state)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    del model[0]
    assert model[1] is shared


ARRAYS = [np.zeros(2), Tensor(np.zeros(2)), None, 0.0, [0.0], F.relu, nn.ReLU]

# ---------------------------------------------------------------------------- assignments


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        *(("scale", wrong) for wrong in [*ARRAYS, nn.ReLU(), nn.Buffer(np.zeros(2))]),
        *(("layer", wrong) for wrong in [*ARRAYS, nn.Parameter(np.zeros(2))]),
        *(("norm.running_var", wrong) for wrong in [*ARRAYS, nn.Parameter(np.zeros(2))]),
    ],
)
def test_what_is_registered_stays(path: str, wrong: Any) -> None:
    net: Any = Net()
    owner, name = (net.norm, "running_var") if "." in path else (net, path)
    held = getattr(owner, name)
    with pytest.raises(TypeError, match=rf"\.{name} is a (Parameter|Buffer|Module), not to be"):
        setattr(owner, name, wrong)
    assert getattr(owner, name) is held
    assert len(list(net.parameters())) == 5
    delattr(owner, name)
    assert not hasattr(owner, name)
    if not isinstance(wrong, (nn.Module, nn.Parameter, nn.Buffer)):
        setattr(owner, name, wrong)  # asked for


def test_registered_attributes_take_their_own_kind() -> None:
    net = Net()
    net.layer = other = linear(1)
    net.scale = nn.Parameter(np.zeros(2))
    net.norm.running_var = nn.Buffer(np.full(2, 3.0))
    assert dict(net.named_parameters())["layer.weight"] is other.weight
    assert net.state_dict()["norm.running_var"].tolist() == [3, 3]
    plain = nn.Linear(2, 2, bias=False)
    plain.bias = None
    plain.bias = nn.Parameter(np.zeros(2, np.float32))
    assert list(plain.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize("wrong", [[1.0, 2.0], 3.0, None, np.ma.array([1.0])])
def test_a_buffer_holds_an_array(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"data (must be a NumPy or CuPy array|is a masked array)"):
        nn.Buffer(wrong)


def test_a_module_of_a_class_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Shared.layer holds .*: assign it to self in __init__"):

        class Shared(nn.Module):
            layer = nn.ReLU()


def test_slots_are_refused() -> None:
    with pytest.raises(TypeError, match=r"Slim.__slots__ has layer, .*: leave __slots__ out"):

        class Slim(nn.Module):
            __slots__ = ("layer",)


def test_a_module_cannot_contain_itself() -> None:
    net: Any = Net()
    for name, child in (("own", net), ("outer", nn.Sequential(nn.ReLU(), net))):
        with pytest.raises(ValueError, match=rf"Net.{name} must not contain Net itself"):
            setattr(net, name, child)
    layers = nn.ModuleList([net])
    with pytest.raises(ValueError, match="must not contain ModuleList itself"):
        layers.append(layers)
    with pytest.raises(ValueError, match="must not contain"):
        net.layers = layers
    assert len(layers) == 1


@pytest.mark.parametrize("name", ["", "a.b", "."])
def test_names_must_be_told_apart(name: str) -> None:
    for member in (nn.ReLU(), nn.Parameter(np.ones(1)), nn.Buffer(np.ones(1))):
        with pytest.raises(ValueError, match="must have no dot"):
            setattr(Net(), name, member)


def test_modes_are_bools() -> None:
    net = Net()
    for wrong in (0, 1, "eval", None, nn.ReLU()):
        with pytest.raises(TypeError):
            net.training = wrong  # type: ignore[assignment]
        with pytest.raises(TypeError, match="training must be True or False"):
            net.train(wrong)  # type: ignore[arg-type]
    net.train(np.False_)  # type: ignore[arg-type]
    assert net.layer.training is False


def test_copies_and_pickles_keep_everything() -> None:
    net = Net()
    for again in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):  # noqa: S301
        assert list(again.state_dict()) == list(net.state_dict())
        with pytest.raises(TypeError):
            again.scale = np.ones(2)


# ---------------------------------------------------------------------------- modes


def test_each_module_keeps_its_mode() -> None:
    net = Net()
    net.norm.eval()

    def fail() -> None:
        with nn.keep_modes(net):
            net.train()
            net.layer.eval()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [m.training for m in (net, net.layer, net.norm)] == [True, True, False]


# ---------------------------------------------------------------------------- state from elsewhere


class LikeTorch:
    """A tensor that NumPy cannot read, as one that requires a gradient, or lies on a GPU."""

    shape, ndim, dtype = (2, 2), 2, "torch.bfloat16"

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def __len__(self) -> int:
        return 2

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        raise self.error("Got unsupported\nScalarType")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("layer.weight", LikeTorch(TypeError), r"NumPy cannot read \(Got unsupported ScalarType\)"),
        ("layer.weight", LikeTorch(RuntimeError), "NumPy cannot read"),
        ("layer.weight", [[1.0, 2.0], [3.0]], "a list that NumPy cannot read"),
        ("layer.weight", np.ones((2, 2), int), "dtype int64, expected a floating dtype"),
        ("layer.weight", np.ones((2, 2), np.uint16), "dtype uint16, expected a floating dtype"),
        ("layer.weight", np.ones((2, 2), bool), "dtype bool, expected a floating dtype"),
        ("layer.weight", np.ones((2, 2), object), "dtype object, expected a floating dtype"),
        ("layer.weight", np.full((2, 2), 1e300), "values that float32 cannot hold"),
        ("norm.running_var", np.array([1.0, -1e-9]), "NaN or values below 0"),
        ("norm.running_var", np.array([1.0, np.nan]), "NaN or values below 0"),
        ("norm.running_mean", np.array([1.0, np.nan]), "norm.running_mean: NaN"),
        ("norm.num_batches_tracked", np.array(-1), "NaN or values below 0"),
        ("norm.num_batches_tracked", np.array(1.5), "values that int64 cannot hold"),
        ("norm.num_batches_tracked", np.array(np.nan), "values that int64 cannot hold"),
        ("norm.num_batches_tracked", np.array(2**63, np.uint64), "values that int64 cannot hold"),
        ("norm.num_batches_tracked", np.array(True), "dtype bool, expected whole numbers"),
        ("norm.num_batches_tracked", np.array([1, 1]), r"shape \(2,\), expected \(\)"),
    ],
)
def test_state_that_does_not_fit_changes_nothing(name: str, value: Any, words: str) -> None:
    net = Net()
    held = {key: id(holder.data) for key, holder in net.named_state()}
    state: dict[str, Any] = {key: array + 1 for key, array in net.state_dict().items()}
    state[name] = value
    for load in (net.load_state_dict, lambda s: weights.import_state(net, s)):
        with pytest.raises(ValueError, match=f"{name}.*{words}|{words}") as caught:
            load(state)
        assert f"{name}: " in str(caught.value)
        assert "\n" not in str(caught.value)
    assert held == {key: id(holder.data) for key, holder in net.named_state()}


def test_state_that_fits_is_converted() -> None:
    net = Net()
    state: dict[str, Any] = net.state_dict()
    state["layer.weight"] = Tensor(np.full((2, 2), 0.5, ">f8"))
    state["layer.bias"] = np.full(2, 0.25, np.float16)
    state["scale"] = [1, 2.5]
    state["norm.running_var"] = np.array([0.0, np.inf])  # a batch may overflow
    state["norm.num_batches_tracked"] = np.array(7.0)
    net.load_state_dict(state)
    assert net.layer.weight.data.tolist() == [[0.5, 0.5]] * 2
    assert net.layer.weight.dtype == net.layer.bias.dtype == np.float32  # type: ignore[union-attr]
    assert net.scale.data.tolist() == [1, 2.5]
    assert net.norm.num_batches_tracked.data == 7
    assert net.norm.num_batches_tracked.data.dtype == np.int64
    state["layer.bias"][...] = 9
    assert net.layer.bias.data.tolist() == [0.25, 0.25]  # type: ignore[union-attr]


@pytest.mark.parametrize("state", [[("scale", np.ones(2))], "net.safetensors", None, linear()])
def test_state_must_be_a_mapping(state: Any) -> None:
    with pytest.raises(TypeError, match="state must be a mapping of names to arrays"):
        Net().load_state_dict(state)


def test_a_counter_of_one_value_is_a_counter() -> None:
    norm = nn.BatchNorm2d(2)
    # as numpy.ascontiguousarray and old files of PyTorch have it
    state = {name: np.ascontiguousarray(array) for name, array in norm.state_dict().items()}
    state["num_batches_tracked"] = np.array([7])
    norm.load_state_dict(state)
    assert norm.num_batches_tracked.data.shape == ()
    assert norm.num_batches_tracked.data == 7
    for shape in ((2,), (1, 1), (0,)):
        with pytest.raises(ValueError, match="num_batches_tracked: shape"):
            norm.load_state_dict(state | {"num_batches_tracked": np.zeros(shape, int)})


# ---------------------------------------------------------------------------- walks


def test_walks_are_pytorchs() -> None:
    """Parents before children, in the order of assignment; a shared module once, unless asked."""
    net, shared = Net(), nn.ReLU()
    net.first = shared  # type: ignore[attr-defined]
    whole = nn.Sequential(shared, nn.Sequential(net, shared), net.norm)
    once = {"": whole, "0": shared, "1": whole[1], "1.0": net, "1.0.layer": net.layer,
            "1.0.norm": net.norm}  # fmt: skip
    assert list(whole.named_modules()) == list(once.items())
    assert list(whole.modules()) == list(once.values())
    every = [name for name, _ in whole.named_modules(remove_duplicate=False)]
    assert every == ["", "0", "1", "1.0", "1.0.layer", "1.0.norm", "1.0.first", "1.1", "2"]
    twice = nn.Sequential(shared, net, shared)
    assert list(twice.children()) == [shared, net]
    assert list(twice.named_children()) == [("0", shared), ("1", net)]
    assert [name for name, _ in twice.named_children(remove_duplicate=False)] == ["0", "1", "2"]
    assert list(twice) == [shared, net, shared]


def test_named_state_is_the_state_dict_in_place() -> None:
    shared = linear()
    model = nn.Sequential(shared, nn.BatchNorm2d(2), shared)
    assert [name for name, _ in model.named_state()] == list(model.state_dict())
    for _, holder in model.named_state():
        holder.data = holder.data + 1
    assert (model.state_dict()["2.bias"] == shared.bias.data).all()  # type: ignore[union-attr]


def test_a_module_without_forward_says_so() -> None:
    with pytest.raises(NotImplementedError, match=r"Net must define forward\(x\)"):
        Net()(np.ones(2))
