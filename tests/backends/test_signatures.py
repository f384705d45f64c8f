"""The modules of all wings against the table: names, parameters, shapes, and what is written."""

from __future__ import annotations

import contextlib
import inspect
import pkgutil
from importlib import import_module
from math import prod
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cuda_proof import gemm, host

from invocupy import backends
from invocupy.backends.signatures import Function, Perceptron, functions
from invocupy.geometry import Geometry

SIZES = {
    "N": 2, "C": 6, "G": 2, "H": 5, "W": 4, "Ho": 5, "Wo": 4, "Kh": 3, "Kw": 1, "F": 3, "O": 4,
    "P": 7,
}  # fmt: skip
IMAGES = {1: (4,), 2: (5, 4), 3: (2, 5, 4)}
KERNELS = {1: (3,), 2: (3, 1), 3: (1, 3, 3)}
OPTIONS = {
    "window": ((1, 1), (1, 0), (1, 1)), "relu": True, "eps": 1e-5, "count": 40, "momentum": 0.1,
    "unbiased": 1.1, "groups": SIZES["G"],
}  # fmt: skip
WINGS = [
    (wing, op) for op in functions() for wing in ("reference", "cpu", "cuda")
    if wing != "cuda" or op in backends.ON_GPU
]  # fmt: skip
CALLS = [
    (wing, op, name, dims) for wing, op in WINGS for name in functions()[op]
    for dims in (IMAGES if op == "involution" else (2,))
    if op not in ("involution_block", "sgd")  # whose arguments are lists
]  # fmt: skip


def module_of(wing: str, op: str) -> ModuleType:
    return import_module(f"invocupy.backends.{wing}.{op}")


@pytest.mark.parametrize(("wing", "op"), WINGS)
def test_functions_and_parameters(wing: str, op: str) -> None:
    module = module_of(wing, op)
    own = dict(inspect.getmembers(module, inspect.isfunction))
    public = {name for name, f in own.items() if name[0] != "_" and f.__module__ == module.__name__}
    assert public <= set(functions()[op]) <= set(own)
    for name, (given, filled) in functions()[op].items():
        text = ", ".join(argument.name for argument in (*given, *filled))
        found = inspect.signature(own[name]).parameters.values()
        stars = ["*"] * any(p.kind is p.KEYWORD_ONLY for p in found)
        names = [p.name for p in found if p.kind is not p.KEYWORD_ONLY]
        names += stars + [p.name for p in found if p.kind is p.KEYWORD_ONLY]
        assert ", ".join(names) == text


def test_every_module_is_in_the_table() -> None:
    folder = import_module("invocupy.backends.reference").__path__
    assert {module.name for module in pkgutil.iter_modules(folder)} == set(functions())
    folder = import_module("invocupy.backends.cuda").__path__
    modules = {module.name for module in pkgutil.iter_modules(folder)}
    shared = {"graph", "spread"}  # records what all of them launch; is part of two
    assert modules - shared == set(backends.ON_GPU)
    for op in functions():
        wing = "cuda" if op in backends.ON_GPU else "reference"
        assert backends.of(op, object()) is module_of(wing, op)  # what is no array of NumPy
        assert backends.of(op, np.ones(1)) is module_of("cpu", op)


def arrays(op: str, function: Function, dims: int) -> tuple[list[Any], list[Any]]:
    """Drawn arguments, and results full of NaN, as the table has them."""
    rng = np.random.default_rng(0)
    n, c, groups, o, size = (SIZES[name] for name in ("N", "C", "G", "O", "H"))
    channels = groups * o if op == "involution_sum" else c
    image, kernel = IMAGES[dims], KERNELS[dims]
    g = Geometry.of((n, channels, *image), (n, groups, *kernel, *image))
    axes = {"*S": image, "*O": image, "*K": kernel, "T": (groups * prod(kernel),)}
    hidden = 8
    shapes = [(hidden, c), (hidden,), (SIZES["F"], hidden), (SIZES["F"],), (o, hidden)]
    options = OPTIONS | {"g": g, "weights": Perceptron(*map(rng.standard_normal, shapes))}
    if op == "pooling":
        options["window"] = ((3, 1), (1, 1), (1, 0))

    def made(name: str, shape: tuple[str, ...], fill: bool) -> Any:
        if name == "grad_weights":
            return Perceptron(*(np.full(shape, np.nan) for shape in shapes))
        if not shape:
            return options[name]
        sizes = SIZES | {"C": channels}
        exact: list[int] = []
        for axis in shape:
            exact += axes.get(axis) or [eval(axis.replace("/", "//"), {}, sizes)]  # noqa: S307
        if name == "winner":
            winner = np.full(exact, -2, np.int32)
            if not fill:
                x = rng.standard_normal((n, c, size, SIZES["W"]))
                module_of("reference", op).max_pool(x, options["window"], np.empty(exact), winner)
            return winner
        return np.full(exact, np.nan) if fill else np.abs(rng.standard_normal(exact)) + 0.1

    return (
        [made(argument.name, argument.shape, False) for argument in function.given],
        [made(argument.name, argument.shape, True) for argument in function.filled],
    )


def flat(arguments: list[Any]) -> list[np.ndarray]:
    """All arrays among them."""
    nested = (a if isinstance(a, Perceptron) else (a,) for a in arguments)
    return [array for some in nested for array in some if isinstance(array, np.ndarray)]


@pytest.mark.parametrize(("wing", "op", "name", "dims"), CALLS)
@pytest.mark.parametrize("optional", [True, False])
def test_shapes_and_what_is_written(
    wing: str, op: str, name: str, dims: int, optional: bool
) -> None:
    """A call as the table has it fills all of its results, and nothing else."""
    function = functions()[op][name]
    given, filled = (
        [array if optional or not argument.optional else None for argument, array in pairs]
        for pairs in map(zip, function, arrays(op, function, dims))
    )
    before = [array.copy() for array in flat(given)]
    on_gpu = wing == "cuda" and op != "convolution"  # which is array code, and runs on NumPy's
    with contextlib.ExitStack() as stack:
        if on_gpu:
            stack.enter_context(host.installed(host.Machine().compile))
        if on_gpu and op == "pointwise":
            stack.enter_context(gemm.installed())
        getattr(module_of(wing, op), name)(*given, *filled)
    for array, old in zip(flat(given), before, strict=True):
        np.testing.assert_array_equal(array, old)
    wanted = [None if a is None else a.copy() for a in filled if not isinstance(a, Perceptron)]
    for array in flat(filled):
        assert not (np.isnan(array) if array.dtype.kind == "f" else array == -2).any()
    getattr(module_of("reference", op), name)(*given, *filled)
    results = [a for a in filled if not isinstance(a, Perceptron)]
    for array, other in zip(results, wanted, strict=True):
        if array is not None:
            np.testing.assert_allclose(other, array, rtol=1e-12, atol=1e-12)
