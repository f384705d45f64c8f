"""Every operator by its row in the table: its contract, its gradients, the tape around it."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from op_table import ROWS, Row, rows

from invocupy import Tensor, functional, ops
from invocupy.testing import check_partials, gradcheck, lay_out


def test_every_function_and_op_has_a_row() -> None:
    def public(module: ModuleType) -> set[str]:
        return {
            name
            for name, function in inspect.getmembers(module, inspect.isfunction)
            if not name.startswith("_") and function.__module__.startswith(module.__name__)
        }

    no_partials = {"batch_moments", "involution_backward", "fused_involution_backward"}
    named = {row.name for row in ROWS}
    assert (public(functional) | public(ops)) - no_partials == named


@rows
@pytest.mark.parametrize(
    ("dtype", "layout"), [("float64", "C"), ("float32", "sliced"), ("float64", "Fortran")]
)
def test_partials(row: Row, dtype: str, layout: str, xp: ModuleType) -> None:
    for seed in range(2):
        arguments = [
            lay_out(a, layout) if getattr(a, "ndim", 0) and a.dtype == dtype else a
            for a in row.draw(seed, xp, dtype)
        ]
        value, _ = row.run_op(*arguments)
        assert type(value) is xp.ndarray
        assert value.dtype == dtype
        check_partials(row.run_op, *arguments, seed=seed)


@rows
def test_partials_have_the_dtype_of_their_argument(row: Row, xp: ModuleType) -> None:
    """Also where one argument is narrower than the rest."""
    arguments = row.draw(4, xp, "float64")
    for i, argument in enumerate(arguments):
        if getattr(argument, "dtype", None) == "float64":
            mixed = [*arguments[:i], argument.astype("float32"), *arguments[i + 1 :]]
            check_partials(row.run_op, *mixed)


COMPILED = ("conv2d", "linear", "pool2d", "batch_norm", "attention", "involution")


@pytest.mark.parametrize(
    "row",
    [row for row in ROWS if row.name.endswith(COMPILED)],
    ids=lambda row: f"{row.name} {row.variant}".strip(),
)
@pytest.mark.parametrize("dtype", ["int64", "uint32", "bool", "complex64", "longdouble", "object"])
def test_no_other_dtype_is_taken_for_floats(row: Row, dtype: str) -> None:
    arrays = row.draw(0, np, "float32")
    for place, name in enumerate(inspect.signature(getattr(ops, row.name)).parameters):
        if place < len(arrays) and arrays[place] is not None:
            wrong = list(arrays)
            wrong[place] = arrays[place].astype(dtype)
            with pytest.raises(TypeError, match=f"{name} has dtype"):
                row.run_op(*wrong)
            wrong[place] = np.ma.masked_array(arrays[place])
            with pytest.raises(TypeError, match=f"{name} is a masked array"):
                row.run_op(*wrong)


@pytest.mark.parametrize("name", ["sigmoid", "dropout", "softmax", "log_softmax", "cross_entropy"])
@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool", "complex64", "object"])
def test_results_that_integers_cannot_hold(name: str, dtype: str) -> None:
    arrays = next(row for row in ROWS if row.name == name).draw(0, np, "float32")
    first = next(iter(inspect.signature(getattr(ops, name)).parameters))
    arrays[0] = arrays[0].astype(dtype)
    with pytest.raises(TypeError, match=f"{first} has dtype {dtype}"):
        getattr(functional, name)(*arrays)


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.name != "getitem"], ids=lambda row: row.name
)
def test_no_mask_is_ignored(row: Row) -> None:
    arrays = row.draw(0, np, "float32")
    for place, array in enumerate(arrays):
        if isinstance(array, np.ndarray):
            masked = [*arrays[:place], np.ma.masked_array(array), *arrays[place + 1 :]]
            with pytest.raises(TypeError, match="is a masked array, and the mask would be ignored"):
                row.run(*masked)


@rows
def test_tape(row: Row, xp: ModuleType) -> None:
    gradcheck(row.run, *row.draw(2, xp, "float64"))


@rows
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tensors_in_tensor_out(row: Row, dtype: str, xp: ModuleType) -> None:
    arguments = row.draw(3, xp, dtype)
    value, _ = row.run_op(*arguments)
    plain = row.run(*arguments)
    assert type(plain) is xp.ndarray
    assert plain.tobytes() == value.tobytes()
    tensors = [
        Tensor(a, requires_grad=True) if hasattr(a, "dtype") and a.dtype == dtype else a
        for a in arguments
    ]
    result = row.run(*tensors)
    assert isinstance(result, Tensor)
    assert result.requires_grad
    assert result.data.tobytes() == value.tobytes()
    result.backward(xp.ones_like(value))
    for tensor in tensors:
        if isinstance(tensor, Tensor):
            assert tensor.grad.shape == tensor.shape
            assert tensor.grad.dtype == dtype


@pytest.mark.parametrize(
    ("name", "shapes", "options"),
    [
        ("conv2d", [(0, 2, 5, 5), (4, 2, 3, 3), (4,)], {"padding": 1}),
        ("max_pool2d", [(0, 2, 5, 5)], {"kernel_size": 2}),
        ("avg_pool2d", [(0, 2, 5, 5)], {"kernel_size": 2}),
        ("linear", [(0, 2), (3, 2), (3,)], {}),
        ("softmax", [(0, 3)], {}),
        ("log_softmax", [(0, 3)], {}),
        ("relu", [(0, 3)], {}),
        ("sum", [(0, 3)], {}),
        ("mean", [(0, 3)], {"axis": 1}),
        ("matmul", [(0, 3), (3, 2)], {}),
    ],
)
def test_empty_batch(name: str, shapes: Any, options: Any, xp: ModuleType) -> None:
    arrays = [xp.ones(shape) for shape in shapes]
    value, partials = getattr(ops, name)(*arrays, **options)
    for array, partial in zip(arrays, partials, strict=False):
        grad = partial(xp.ones_like(value))
        assert grad.shape == array.shape
        assert not grad.any()


@pytest.mark.parametrize("given", [2.5, True, None])
@pytest.mark.parametrize("name", sorted({row.name for row in ROWS} & set(functional.__all__)))
def test_what_is_no_array_is_refused(name: str, given: Any) -> None:
    """Or is a number where operators compute with numbers, as in ``add(1, 2)``."""
    for others in ((), (given,), (np.ones(2),)):
        try:
            value = getattr(functional, name)(given, *others)
        except (TypeError, ValueError):
            continue
        assert given is not None
        assert np.ndim(value) <= 1


def test_a_number_in_the_place_of_an_array_is_named() -> None:
    for call in (functional.mean, functional.transpose, functional.flatten, functional.max):
        with pytest.raises(TypeError, match=r"^x must be a NumPy or CuPy array, got float"):
            call(2.5)
    with pytest.raises(TypeError, match=r"^b must be a NumPy or CuPy array, got NoneType"):
        functional.matmul(Tensor([[1.0]]), None)
