"""The types that users' programs see, and that the written stubs are those of the declarations."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import invocupy

ROOT = Path(__file__).parents[1]
SOURCE = Path(invocupy.__file__).parents[1]  # where the tested package lies
PROGRAM = """
import numpy as np
import numpy.typing as npt
from typing import assert_type

import invocupy
from invocupy import Tensor, functional as F, nn, optim
from invocupy.arrays import Array

x: npt.NDArray[np.float32] = np.ones((1, 4, 5, 5), np.float32)
kernel = np.ones((1, 2, 3, 3, 5, 5), np.float32)
recorded = Tensor(x, requires_grad=True)

assert_type(invocupy.involution(x, kernel), Array)
assert_type(invocupy.involution(recorded, kernel, stride=1, padding="same"), Tensor)
assert_type(invocupy.involution(x, Tensor(kernel)), Tensor)
assert_type(invocupy.involution_backward(x, x, kernel), tuple[Array, Array])
assert_type(invocupy.reference.involution(x, kernel), Array)
assert_type(F.sigmoid(recorded), Tensor)
assert_type(F.where(x > 0, x, 0.0), Array)
assert_type(F.where(x > 0, recorded, 0.0), Tensor)
assert_type(F.clip(x, 0, 1), Array)
assert_type(F.concatenate([recorded, recorded], axis=1), Tensor)
assert_type(F.conv2d(recorded, np.ones((2, 4, 1, 1)), None, stride=2), Tensor)
assert_type((recorded * 2 + x).mean(axis=(2, 3)), Tensor)
assert_type(2 / recorded - recorded**2, Tensor)
assert_type(recorded.clip(0, 1).sigmoid().sum(), Tensor)
assert_type(recorded[0].reshape(4, -1).transpose(), Tensor)
assert_type(recorded.data, Array)
assert_type(recorded.grad, Array | None)

model = invocupy.models.SimpleModel(num_layers=1)
logits = model.logits(Tensor(x))
assert_type(logits, Tensor)
assert_type(nn.Conv2d(4, 8, 3)(recorded), Tensor)
loss = F.cross_entropy(logits, np.zeros(1, np.int64))
assert_type(loss, Tensor)
assert_type(loss.backward(), None)
optim.SGD(model.parameters(), 0.1).step()

stack, criterion = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU()), nn.CrossEntropyLoss()
assert_type(criterion(stack(x), np.zeros(1, np.int64)), Tensor)

class Net(nn.Module):
    def __init__(self) -> None:
        self.layer = nn.Linear(3, 4)

    def forward(self, x: Tensor, twice: bool = False) -> Tensor:
        return self.layer(self.layer(x) if twice else x)

assert_type(Net()(recorded, twice=True), Tensor)
"""
MISTAKES = [
    "loss.bakward()",
    "criterion(stack(x), x).bakward()",
    "Net()(recorded, thrice=True)",
    "nn.Involution(16)(3)",
    "invocupy.models.rednet26(classes=3)",
    "[child.trian() for child in stack.children()]",
    "[parameter.grda for name, parameter in stack.named_parameters()]",
    "F.sigmoidd(recorded)",
    "invocupy.modles",
    "invocupy.models.SimpelModel()",
    "invocupy.involution(x, kernel, strid=2)",
    "recorded.mean(axis='rows')",
    "recorded.grad.shape",  # which may be None
    "F.linear('x', kernel)",
]


def mypy(folder: Path) -> list[tuple[int, str]]:
    """The errors of the programs in a folder, each with its line."""
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(folder / "cache"), "."]
    installed = SOURCE.name == "site-packages"
    path = os.environ | ({} if installed else {"MYPYPATH": str(SOURCE)})
    done = subprocess.run(
        command, cwd=folder, env=path, capture_output=True, text=True, timeout=250
    )
    found = re.findall(r"^program\.py:(\d+): error: (.*)$", done.stdout, re.M)
    assert "Success" in done.stdout or found, done.stdout + done.stderr
    return [(int(line), message) for line, message in found]


def pyright(folder: Path) -> list[tuple[int, str]]:
    settings = {"typeCheckingMode": "strict", "extraPaths": [str(SOURCE)]}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [pyright_program() or "", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=250)
    diagnostics = json.loads(done.stdout)["generalDiagnostics"]
    errors = [d for d in diagnostics if d["severity"] == "error"]
    return [(d["range"]["start"]["line"] + 1, d["message"]) for d in errors]


def pyright_program() -> str | None:
    """Beside this Python or on the path; basedpyright brings what pyright would download."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    return shutil.which("basedpyright", path=path) or shutil.which("pyright", path=path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "check",
    [
        pytest.param(
            mypy,
            marks=pytest.mark.skipif(
                importlib.util.find_spec("mypy") is None, reason="mypy is not installed"
            ),
        ),
        pytest.param(
            pyright,
            marks=pytest.mark.skipif(not pyright_program(), reason="pyright is not installed"),
        ),
    ],
)
def test_a_program_has_types_and_mistakes_are_found(
    check: Callable[[Path], list[tuple[int, str]]], tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM + "\n".join(MISTAKES))
    first = PROGRAM.count("\n") + 1
    found = check(tmp_path)
    assert [error for error in found if error[0] < first] == []
    assert {line for line, _ in found} == set(range(first, first + len(MISTAKES))), found


def test_the_stubs_are_those_of_the_declarations() -> None:
    script = ROOT / ".ci" / "stubs.py"
    if not script.exists():
        pytest.skip("a source archive has no .ci")
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
