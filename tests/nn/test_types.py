"""What a type checker knows of layers: a misspelt method of a loss is an error."""

from __future__ import annotations

from pathlib import Path

import pytest

mypy = pytest.importorskip("mypy.api", reason="mypy is not installed")

CODE = """
import numpy as np
from invocupy import Tensor, nn
from invocupy.models import SimpleModel, rednet26

model, criterion = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), nn.CrossEntropyLoss()
images, labels = np.ones((2, 3, 32, 32)), np.zeros(2, int)

class Net(nn.Module):
    def __init__(self) -> None:
        self.layer = nn.Linear(3, 4)

    def forward(self, x: Tensor, twice: bool = False) -> Tensor:
        return self.layer(self.layer(x) if twice else x)

criterion(model(images), labels).backward()
criterion(model(images), labels).bakward()  # error
SimpleModel().logits(images).bakward()  # error
rednet26(stem="cifar")(images).bakward()  # error
rednet26(classes=3)  # error
nn.Involution(16)(3)  # error
Net()(Tensor(images), twice=True).bakward()  # error
Net()(Tensor(images), thrice=True)  # error
for child in model.children():
    child.trian()  # error
for name, parameter in model.named_parameters():
    name.upper(), parameter.grda  # error
"""


@pytest.mark.slow
def test_misspelt_names_are_errors(tmp_path: Path) -> None:
    wanted = [i for i, line in enumerate(CODE.splitlines(), 1) if line.endswith("# error")]
    (tmp_path / "user.py").write_text(CODE)
    out, problem, _ = mypy.run(["--strict", "--config-file=", str(tmp_path / "user.py")])
    found = [int(line.split(":")[1]) for line in out.splitlines() if ": error:" in line]
    assert found == wanted, out + problem
