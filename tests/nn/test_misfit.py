"""Errors in a layer: the path of the layer, and errors of other kinds as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from invocupy import nn
from invocupy.nn.misfit import misfit

X = np.zeros((2, 3, 4, 4), np.float32)


class Twice(nn.Module):
    """Calls its layer with what it gets, under another name too."""

    def __init__(self, layer: Any) -> None:
        self.first = self.second = layer

    def forward(self, x: Any) -> Any:
        return self.first(self.second(x))


class Raises(nn.Module):
    def __init__(self, *errors: Exception) -> None:
        self.count = len(errors)
        self.forward = lambda x: self._raise(errors[0])

    def _raise(self, error: Exception) -> None:
        raise error


def said(model: nn.Module, x: Any = X) -> str:
    with pytest.raises((TypeError, ValueError, AttributeError)) as caught:
        model(x)
    return str(caught.value)


def test_the_path_is_that_of_state_dict() -> None:
    model = nn.Sequential(nn.ReLU(), Twice(nn.Sequential(nn.Conv2d(5, 3, 1))))
    assert said(model).startswith("layer 1.first.0 (Conv2d): x must be (N, 5, H, W)")
    assert "1.first.0.weight" in model.state_dict()


def test_a_layer_outside_the_tree_is_named_by_its_class() -> None:
    other = nn.Sequential(nn.Conv2d(5, 3, 1))

    class Borrows(nn.Module):
        def forward(self, x: Any) -> Any:
            return other(x)

    assert said(nn.Sequential(Borrows())).startswith("layer 0 (Conv2d): x must be")


def test_the_outermost_layer_that_does_not_fit_is_named() -> None:
    assert said(nn.Sequential(nn.Involution(16))).startswith("layer 0 (Involution): x must be")
    layer = nn.Involution(16)
    layer.norm = nn.BatchNorm2d(5)  # x fits the layer, but not what is inside it
    assert said(layer, np.zeros((1, 16, 3, 3), np.float32)).startswith("layer norm (BatchNorm2d)")


def test_errors_of_other_kinds_stay_as_they_are() -> None:
    class OwnError(ValueError):
        pass

    for error in (OwnError("text"), KeyError("name"), ValueError("two", 2), ValueError()):
        with pytest.raises(type(error)) as caught:
            nn.Sequential(Raises(error))(X)
        assert caught.value is error
    assert said(nn.Sequential(Raises(ValueError("text")))) == "layer 0 (Raises): text"
    assert said(nn.Sequential(Raises(AttributeError("text")))) == "layer 0 (Raises): text"


def test_a_second_error_of_one_object_has_one_path() -> None:
    model = nn.Sequential(Raises(ValueError("text")))
    assert [said(model), said(model)] == ["layer 0 (Raises): text"] * 2


@pytest.mark.parametrize(
    ("shape", "dims", "end"),
    [
        ((2, 3, 4, 4), (2,), ""),
        ((2, 4, 4, 3), (2,), "x.transpose(0, 3, 1, 2)"),
        ((4, 4, 3), (2,), "looks like HWC: transpose with x.transpose(2, 0, 1)[None]"),
        ((2, 4, 3), (0, 1), "looks like NWC: transpose with x.transpose(0, 2, 1)"),
        ((3, 4, 4), (2,), "x[None]"),
        ((3,), (0, 1), "x[None]"),
        ((2, 5, 4, 4), (2,), "the layer has width=3, x has 5"),
        ((2, 3, 4, 4, 4), (2,), "got shape (2, 3, 4, 4, 4)"),
        ((), (2,), "got shape ()"),
    ],
)
def test_shapes(shape: tuple[int, ...], dims: tuple[int, ...], end: str) -> None:
    text = misfit(np.zeros(shape), "width", 3, dims)
    assert text.endswith(end)
    assert bool(text) == bool(end)
