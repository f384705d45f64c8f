"""What the package promises as a whole: light to import, the names of the contract, no pickles."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
import tomllib
import types
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest

import invocupy
from invocupy.extras import MissingExtra
from invocupy.ops import OPS

PACKAGE = Path(invocupy.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
LATER = {"safetensors", "pooch", "tqdm", "numba", "llvmlite", "cupy", "hypothesis", "matplotlib"}


def modules_after(statements: str) -> list[str]:
    """The modules that a new interpreter loads for these statements."""
    script = (
        "import sys; before = set(sys.modules)\n"
        f"{statements}\n"
        "import json; print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    loaded: list[str] = json.loads(done.stdout)
    return loaded


def test_import_loads_numpy_only() -> None:
    loaded = modules_after("import invocupy")
    outside = {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names
    assert outside == {"invocupy", "numpy"}
    assert not set(loaded) & {f"invocupy.{name}" for name in ("train", "data", "nn", "testing")}


def test_import_loads_little_of_the_standard_library() -> None:
    loaded = modules_after("import numpy; before = set(sys.modules); import invocupy")
    heavy = {"asyncio", "concurrent.futures", "logging", "multiprocessing", "threading"}
    assert not heavy & set(loaded)


def test_plain_arrays_load_no_more_than_numba() -> None:
    loaded = modules_after(
        "import invocupy, numpy as np\n"
        "invocupy.involution(np.ones((1, 1, 3, 3)), np.ones((1, 1, 3, 3, 3, 3)))"
    )
    outside = {name.partition(".")[0] for name in loaded}
    assert "numba" in outside
    assert not outside & (LATER - {"numba", "llvmlite"})


# ---------------------------------------------------------------------------- names

INVOLUTION = 'stride=1, padding="same", dilation=1'
CONTRACT = {
    "involution": f"x, kernel, *, {INVOLUTION}, out=None",
    "involution_backward": f"grad_out, x, kernel, *, {INVOLUTION}",
    "fused_involution": "x, features, span_weight, span_bias=None, *, kernel_size, "
    f"{INVOLUTION}, out=None",
    "fused_involution_backward": "grad_out, x, features, span_weight, span_bias=None, *, "
    f"kernel_size, {INVOLUTION}",
    "release_memory": "",
    "Tensor": "data, requires_grad=False",
    "Tensor.backward": "self, grad=None",
    "Tensor.detach": "self",
    "Tensor.numpy": "self",
    "Tensor.item": "self",
    "no_grad": "",
    "functional.linear": "x, weight, bias=None",
    "functional.conv2d": "x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1",
    **dict.fromkeys(
        ("functional.conv1d", "functional.conv3d"),
        "x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1",
    ),
    "functional.batch_norm": "x",
    "functional.relu": "x",
    "functional.max_pool2d": "x, kernel_size, stride=None, padding=0",
    "functional.avg_pool2d": "x, kernel_size, stride=None, padding=0",
    "functional.softmax": "x, axis=-1",
    "functional.log_softmax": "x, axis=-1",
    "functional.cross_entropy": "logits, labels, label_smoothing=0.0",
    "testing.geometries": "*",
    "testing.arrays": "shape",
    "testing.gradcheck": "function, *arrays",
    "testing.check_partials": "op, *arrays, **options",
    "testing.tolerance": "function, *arrays, terms, **options",
    "nn.Module.parameters": "self",
    "nn.Module.named_parameters": "self",
    "nn.Module.buffers": "self",
    "nn.Module.state_dict": "self",
    "nn.Module.load_state_dict": "self, state, strict=True",
    "nn.Module.train": "self",
    "nn.Module.eval": "self",
    "nn.Module.to": "self, device",
    "nn.Module.zero_grad": "self",
    "nn.Parameter": "data",
    "nn.Sequential": "*modules",
    "nn.ModuleList": "modules=()",
    "nn.Conv2d": "in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, "
    "groups=1, bias=True",
    "nn.BatchNorm2d": "num_features, eps=1e-5, momentum=0.1",
    "nn.ReLU": "",
    "nn.Linear": "in_features, out_features, bias=True",
    "nn.Flatten": "",
    "nn.Softmax": "",
    "nn.MaxPool2d": "kernel_size, stride=None, padding=0",
    "nn.AvgPool2d": "kernel_size, stride=None, padding=0",
    "nn.GlobalAvgPool2d": "",
    "nn.Identity": "",
    "nn.CrossEntropyLoss": "label_smoothing=0.0",
    **dict.fromkeys(
        ("nn.Involution1d", "nn.Involution2d", "nn.Involution3d"),
        "channels, kernel_size=3, reduction_ratio=4, channels_per_group=16, stride=1, dilation=1",
    ),
    "nn.Involution": "channels, kernel_size=3, reduction_ratio=4, channels_per_group=16, stride=1, "
    'dilation=1, fused="auto"',
    "models.SimpleModel": "height=32, width=32, hidden_channels=64, num_layers=50, num_classes=10",
    "models.SimpleModel.logits": "self, x",
    **{
        f"models.rednet{depth}": 'num_classes=1000, in_channels=3, stem="imagenet", fused="auto"'
        for depth in (26, 38, 50, 101, 152)
    },
    "models.resnet18": 'num_classes=1000, in_channels=3, stem="imagenet"',
    "weights.import_state": 'model, state, source="auto"',
    "optim.SGD": "params, lr, momentum=0.0, weight_decay=0.0, nesterov=False",
    "optim.SGD.step": "self",
    "optim.SGD.zero_grad": "self",
    "data.cifar10": "root=None, train=True",
    "data.shapes10": "n, seed, train=True",
    "data.Batches": "",
    "train.Config": "",
    "train.fit": "",
    "train.evaluate": "",
}


def named(path: str) -> Any:
    found: Any = invocupy
    for name in path.split("."):
        found = getattr(found, name)
    return found


def parameters(text: str) -> dict[str, inspect.Parameter]:
    """``"x, *, stride=1"`` as ``inspect.signature`` would have it."""
    if text.rstrip().endswith("*"):
        text = text.rstrip()[:-1].rstrip(", ")
    return dict(inspect.signature(eval(f"lambda {text}: 0")).parameters)  # noqa: S307


@pytest.mark.parametrize("name", CONTRACT)
def test_contract(name: str) -> None:
    """Every parameter of the contract, in its order; what is added has a default."""
    found = named(name)
    actual, wanted = inspect.signature(found).parameters, parameters(CONTRACT[name])
    assert [n for n in actual if n in wanted] == list(wanted)
    for parameter in wanted.values():
        assert actual[parameter.name].kind is parameter.kind, parameter
        assert actual[parameter.name].default == parameter.default, parameter
    if wanted:
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        for added in set(actual) - set(wanted):
            p = actual[added]
            assert p.default is not p.empty or p.kind in variadic, added


@pytest.mark.parametrize(
    "name",
    ["involution", "involution_backward", "fused_involution", "fused_involution_backward"],
)
def test_reference_has_the_same_signatures(name: str) -> None:
    assert inspect.signature(getattr(invocupy.reference, name)) == inspect.signature(named(name))


def test_attributes_of_a_tensor() -> None:
    tensor = invocupy.Tensor([1.0])
    for name in ("data", "grad", "shape", "dtype", "ndim", "requires_grad"):
        assert hasattr(tensor, name)


def test_dir_and_unknown_names() -> None:
    assert {"nn", "train", "involution"} <= set(dir(invocupy))
    assert not {"Any", "importlib", "backends"} & set(dir(invocupy))  # what is not for users
    assert all(named(name) is not None for name in dir(invocupy))
    with pytest.raises(AttributeError, match="module 'invocupy' has no attribute 'convolution'"):
        _ = invocupy.convolution


def test_version_is_one() -> None:
    assert importlib.metadata.version("invocupy") == invocupy.__version__


# ---------------------------------------------------------------------------- docstrings

PUBLIC = ["functional", "reference", *invocupy._SUBMODULES]


def explained(item: Any) -> set[str]:
    """The parameters that the section Parameters of a docstring explains."""
    text = inspect.cleandoc(vars(item).get("__doc__") or item.__doc__ or "") + "\n\nEnd\n---"
    section = re.search(r"^Parameters\n-+\n(.*?)\n\n\w+\n---", text, re.M | re.S)
    rows = re.findall(r"^(\S[^\n]*)\n +\S", section[1], re.M) if section else []
    return {name.strip(" *") for row in rows for name in row.partition(" : ")[0].split(",")}


def test_a_parameter_without_an_explanation_is_found() -> None:
    def function(x: int, y: int, *rest: int) -> None:
        """Do nothing.

        Parameters
        ----------
        x : int
        y, *rest : int
            Numbers.

        >>> function(1, 2)
        """

    assert explained(function) == {"y", "rest"}
    assert lacking(function) == ["an explanation of x"]


def lacking(item: Any) -> list[str]:
    """What the docstring of a public class or function should have and has not."""
    text = inspect.getdoc(item)
    if not text:
        return ["a docstring"]
    declared = OPS.get(item.__name__) if item.__module__ == "invocupy.functional" else None
    kind = declared.__module__.rpartition(".")[2] if declared else ""
    # The fields of results, and the rows of config.json, are told where they are declared.
    fields = inspect.isclass(item) and (
        issubclass(item, (tuple, BaseException)) or (is_dataclass(item) and not hasattr(item, "to"))
    )
    made = not inspect.isclass(item) or "__init__" in vars(item)
    names = inspect.signature(item).parameters if made and not fields else []
    told = set().union(*(explained(cls) for cls in getattr(item, "__mro__", [item])))
    missing = [f"an explanation of {n}" for n in names if n not in told and n[0] != "_"]
    if inspect.isclass(item):
        return missing
    wanted = [">>>"]
    # The results of arithmetic, reductions and shapes are arrays.
    plain = kind in ("elementwise", "reductions", "shapes") or item.__name__ == "matmul"
    if names and not plain and inspect.signature(item).return_annotation not in (None, "None"):
        wanted.append("Returns\n")
    return [*missing, *(part.strip() for part in wanted if part not in text)]


@pytest.mark.parametrize("name", [None, *PUBLIC])
def test_docstrings(name: str | None) -> None:
    module = named(name) if name else invocupy
    assert inspect.getdoc(module)
    public = {
        name: item
        for name, item in inspect.getmembers(module)
        if not name.startswith("_")
        and (inspect.isfunction(item) or inspect.isclass(item))
        and f"{item.__module__}.".startswith(f"{module.__name__}.")
    }
    assert public
    assert {name: parts for name, item in public.items() if (parts := lacking(item))} == {}


# ---------------------------------------------------------------------------- source code


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in SOURCES:
        yield path, ast.parse(path.read_text(encoding="utf-8"), str(path))


def test_nothing_is_unpickled_and_no_shell_is_started() -> None:
    forbidden = {
        "pickle",
        "cPickle",
        "_pickle",
        "marshal",
        "shelve",
        "dill",
        "cloudpickle",
        "joblib",
    }
    found = []
    for path, tree in trees():
        if path.name == "jit.py":
            # Compiled kernels, which this user wrote into a folder that nobody else can write to:
            # running them is what they are for. tests/backends/cpu hold that to its conditions.
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").partition(".")[0]}
            else:
                names = set()
            bad = bool(names & forbidden)
            if isinstance(node, ast.Call):
                options = {
                    keyword.arg: keyword.value.value
                    for keyword in node.keywords
                    if isinstance(keyword.value, ast.Constant)
                }
                # Numba's cache is a pickle that anyone who can write the folder can replace.
                bad |= any(options.get(n) is True for n in ("shell", "allow_pickle", "cache"))
                called = ast.unparse(node.func)
                bad |= called in ("eval", "exec", "os.system", "os.popen")
                bad |= called in ("np.load", "numpy.load") and "allow_pickle" not in options
            if bad:
                found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert found == []


def test_hypothesis_is_imported_by_testing_only() -> None:
    importing = {
        path.name
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom)) and "hypothesis" in ast.unparse(node)
    }
    assert importing == {"drawing.py"}


@pytest.mark.parametrize("name", ["cpu", "volumes"])
def test_the_page_of_benchmarks_shows_the_results_file(name: str) -> None:
    root = PACKAGE.parent
    results = root / "benchmarks" / "results" / f"{name}.json"
    command = [sys.executable, str(root / "benchmarks" / "cpu.py"), "--table", str(results)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert len(done.stdout.splitlines()) > 20
    assert done.stdout in (root / "docs" / "benchmarks.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("library", "name"), [("torch", "PyTorch"), ("jax", "JAX"), ("dask", "dask")]
)
def test_an_adapter_names_the_extra_of_a_missing_or_old_library(
    library: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyproject = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    (wanted,) = pyproject["project"]["optional-dependencies"][library]
    minimum = wanted.partition(">=")[2]
    adapter = f"invocupy.interop.{library}"
    monkeypatch.delitem(sys.modules, adapter, raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        ModuleNotFoundError, match=rf"{name} is not installed: pip install 'invocupy\["
    ):
        importlib.import_module(adapter)
    old = types.ModuleType(library)
    monkeypatch.setitem(sys.modules, library, old)
    for old.__version__ in ("0.4.38", "0.4rc1+cpu"):
        with pytest.raises(
            MissingExtra, match=rf"{name} 0\.4\S* is too old, {minimum} or newer.*{library}"
        ):
            importlib.import_module(adapter)
