"""The testers of gradients are tested: a mistake of 0.05 % must be found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import invocupy
from invocupy import ops
from invocupy.autograd import Tensor, apply
from invocupy.testing import check_partials, gradcheck, lay_out

WRONG = 1.0005


def cube(x: Any) -> Any:
    """``x**3``: right."""
    return x**3, (lambda grad: grad * 3 * x**2,)


def product(a: Any, b: Any) -> Any:
    """``a * b``: right."""
    return a * b, (lambda grad: grad * b, lambda grad: grad * a)


def slightly_wrong(x: Any) -> Any:
    return x**3, (lambda grad: grad * 3 * x**2 * WRONG,)


def wrong_in_one_argument(a: Any, b: Any) -> Any:
    return a * b, (lambda grad: grad * b, lambda grad: grad * a * WRONG)


def wrong_in_one_component(x: Any) -> Any:
    def partial(grad: Any) -> Any:
        result = grad * 3 * x**2
        result[1, 2] *= WRONG
        return result

    return x**3, (partial,)


def zero_gradient(x: Any) -> Any:
    return x**3, (lambda grad: 0 * grad,)


def ignores_grad(x: Any) -> Any:
    return x**3, (lambda grad: 3 * x**2,)


def wrong_for_strided_grad(x: Any) -> Any:
    def partial(grad: Any) -> Any:
        return np.lib.stride_tricks.as_strided(grad, strides=np.sort(np.abs(grad.strides))[::-1])

    return x * 1, (partial,)


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(5).uniform(0.5, 1.5, (3, 4))


def test_right_gradients_pass(x: np.ndarray) -> None:
    check_partials(cube, x)
    check_partials(product, x, 2 - x)
    gradcheck(lambda a: apply(cube, a), x)
    gradcheck(lambda a, b: apply(product, a, b).exp(), x, 2 - x)


@pytest.mark.parametrize(
    "op", [slightly_wrong, wrong_in_one_component, zero_gradient, ignores_grad]
)
@pytest.mark.parametrize("seed", range(5))
def test_wrong_gradient_fails(op: Callable[..., Any], seed: int, x: np.ndarray) -> None:
    with pytest.raises(AssertionError, match=r"partial 0 is wrong: \S+ along .* slope is \S+"):
        check_partials(op, x, seed=seed)
    with pytest.raises(AssertionError, match=r"gradient of argument 0 is wrong: \S+ along"):
        gradcheck(lambda a: apply(op, a), x, seed=seed)


def test_wrong_gradient_of_one_of_two_arguments_fails(x: np.ndarray) -> None:
    with pytest.raises(AssertionError, match="partial 1 is wrong"):
        check_partials(wrong_in_one_argument, x, 2 - x)
    with pytest.raises(AssertionError, match="argument 1 is wrong"):
        gradcheck(lambda a, b: apply(wrong_in_one_argument, a, b), x, 2 - x)


def test_gradient_with_strides_is_tried(x: np.ndarray) -> None:
    with pytest.raises(AssertionError, match="partial 0 is wrong"):
        check_partials(wrong_for_strided_grad, x)


def test_gradient_that_never_arrives_fails(x: np.ndarray) -> None:
    with pytest.raises(AssertionError, match=r"argument 0 is wrong: 0\.0 "):
        gradcheck(lambda a: a.detach() * Tensor(x, requires_grad=True), x)


def test_gradcheck_wants_a_tensor(x: np.ndarray) -> None:
    with pytest.raises(TypeError, match="function must return a Tensor, got ndarray"):
        gradcheck(lambda a: a.data, x)


def broken(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """``cube`` whose partial is ``changes["partial"]``."""
    return lambda x: (x**3, (lambda grad: changes["partial"](grad, x),))


def keeps_its_result(x: Any) -> Any:
    kept: list[Any] = []

    def partial(grad: Any) -> Any:
        if not kept:
            kept.append(grad * 3 * x**2)
        return kept[0]

    return x**3, (partial,)


def writes_input(x: Any) -> Any:
    x *= 2
    return x**3, (lambda grad: grad * 3 * x**2,)


def writes_input_later(x: Any) -> Any:
    def partial(grad: Any) -> Any:
        result = grad * 3 * x**2
        x[0] = 0
        return result

    return x**3, (partial,)


def writes_grad(x: Any) -> Any:
    def partial(grad: Any) -> Any:
        grad *= 3
        return grad * x**2

    return x**3, (partial,)


def writes_value(x: Any) -> Any:
    value = x**3

    def partial(grad: Any) -> Any:
        result = 3 * grad * value / x
        value[...] = 0
        return result

    return value, (partial,)


def gives_value(x: Any) -> Any:
    value = np.exp(x)
    return value, (lambda grad: value,)


def remembers_the_array(x: Any) -> Any:
    last: list[Any] = [None, None]

    def partial(grad: Any) -> Any:
        if last[0] is not grad:
            last[:] = grad, 3 * x**2 * grad
        return last[1].copy()

    return x**3, (partial,)


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (lambda x: (x**3, ()), "0 partials for 1 arguments"),
        (broken(partial=lambda grad, x: grad.sum(axis=0)), "has shape"),
        (broken(partial=lambda grad, x: grad.astype("float64")), "has dtype float64"),
        (broken(partial=lambda grad, x: grad.tolist()), "gives a list"),
        (broken(partial=lambda grad, x: x), "gives the memory of argument 0"),
        (gives_value, "gives the memory of the value"),
        (keeps_its_result, "another result when called again"),
        (writes_input, "argument 0 was written to"),
        (writes_input_later, "another result when called again|argument 0 was written to"),
        (writes_grad, "another result when called again|the gradient was written to"),
        (writes_value, "another result when called again|the value was written to"),
        (remembers_the_array, "of what its gradient held before"),
    ],
)
def test_broken_contract_fails(op: Callable[..., Any], message: str, x: np.ndarray) -> None:
    with pytest.raises(AssertionError, match=message):
        check_partials(op, x.astype("float32"))


def test_gap_of_a_view_is_watched(x: np.ndarray) -> None:
    def writes_gap(x: Any) -> Any:
        x.base[0, 0] = 1
        return cube(x)

    with pytest.raises(AssertionError, match="argument 0 was written to"):
        check_partials(writes_gap, lay_out(x, "sliced"))


@pytest.mark.parametrize("place", [0.0, 2e-5, -7e-5])
@pytest.mark.parametrize("op", [ops.relu, ops.absolute])
def test_kinks_are_refused(op: Callable[..., Any], place: float, x: np.ndarray) -> None:
    x[1, 1] = place
    with pytest.raises(ValueError, match="kink"):
        check_partials(op, x)
    with pytest.raises(ValueError, match="kink"):
        gradcheck(lambda a: apply(op, a), x)


def test_labels_and_none_are_passed_on() -> None:
    logits, labels = np.random.default_rng(0).normal(size=(4, 3)), np.array([0, 2, 1, 1])
    check_partials(ops.cross_entropy, logits, labels)
    gradcheck(invocupy.functional.cross_entropy, logits, labels)
    check_partials(ops.linear, logits, logits[:2], None)
