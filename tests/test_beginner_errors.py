"""Typical mistakes of a beginner, and the message that each gets.

A message names the argument (in a model also the layer), the rule, the values and the way out.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pooch  # noqa: F401  (its logger keeps the standard error of its first import)
import pytest

import invocupy
from invocupy import Tensor, data, functional, models, nn, optim, reference, train, weights

Mistake = tuple[str, type[Exception], str]


class _Lent:
    """What looks like an array of another library."""


NAMES: dict[str, Any] = {
    **{name: getattr(invocupy, name) for name in invocupy.__all__},
    "np": np, "nn": nn, "F": functional, "models": models, "optim": optim, "train": train,
    "weights": weights, "data": data, "reference": reference, "Tensor": Tensor,
    "zeros": lambda *shape: np.zeros(shape, np.float32),
    "kernel": np.zeros((2, 1, 3, 3, 8, 8), np.float32),
    "torch_tensor": type("Tensor", (_Lent,), {"__module__": "torch"})(),
    "jax_array": type("ArrayImpl", (_Lent,), {"__module__": "jaxlib._jax"})(),
    "dask_array": type("Array", (_Lent,), {"__module__": "dask.array.core"})(),
}  # fmt: skip

NHWC = r"which looks like NHWC: transpose with x\.transpose\(0, 3, 1, 2\)"
NO_BATCH = r"without a batch axis: add it with x\[None\]"

ARRAYS: list[Mistake] = [
    # arrays of many lines where a number or an option belongs
    *((code, kind, r"^[\w ]+ must .*, got array\(.*\.\.\.") for code, kind in (
        ("F.conv2d(zeros(2, 3, 8, 8), zeros(4, 3, 3, 3), padding=zeros(9, 9))", ValueError),
        ("F.conv2d(zeros(2, 3, 8, 8), zeros(4, 3, 3, 3), stride=zeros(9, 9))", ValueError),
        ("F.conv2d(zeros(2, 3, 8, 8), zeros(4, 3, 3, 3), groups=zeros(9, 9))", ValueError),
        ("nn.BatchNorm2d(3, momentum=zeros(9, 9))", ValueError),
        ("nn.Linear(3, 2, rng=zeros(9, 9))", TypeError),
        ("nn.Dropout(rng=zeros(9, 9))", TypeError),
        ("F.dropout(zeros(2), rng=zeros(9, 9))", TypeError),
        ("optim.SGD(nn.Linear(2, 2).parameters(), 0.1, nesterov=zeros(9, 9))", ValueError),
        ("F.cross_entropy(zeros(2, 99), np.array([0, 1]), weight=zeros(99) - 1)", ValueError),
        ("F.cross_entropy(zeros(2, 3), np.array([0, 1]), ignore_index=zeros(9, 9))", ValueError),
        ("data.Batches(np.zeros((2, 99, 1, 1), np.uint8), np.zeros(2, int), 1, mean=zeros(99),"
         " std=zeros(99))", ValueError),
    )),
    *((f"data.{call}", TypeError, r"a path must be text or a pathlib\.Path, got (int|bytes|list)$")
      for call in ("cifar10(3)", "cifar100(b'c')", "image_folder(['a'], True, 8)")),
    # images in [0, 1] where bytes belong: their mean would be that of the few pixels that are 1
    *((f"data.moments({x})", kind, f"^images must {words}") for x, kind, words in (
        ("zeros(2, 3, 4, 4)", TypeError, "be uint8, from 0 to 255, got float32"),
        ("[[1]]", TypeError, "be a plain array"),
        ("np.zeros((0, 3, 4, 4), np.uint8)", data.DataError, r"have shape .* got \(0, 3, 4, 4\)"),
        ("np.zeros((2, 3, 4), np.uint8)", data.DataError, r"have shape .* got \(2, 3, 4\)"),
    )),
    ("data.grey(zeros(3, 4, 4))", ValueError, r"image must be uint8 \(3, H, W\), got float32"),
    ("data.grey(np.zeros((1, 4, 4), np.uint8))", ValueError, r"got uint8 \(1, 4, 4\)$"),
    *((f"data.{call}", ValueError, f"^{words}, got ") for call, words in (
        ("image_folder('.', True, 2.5)", "size must be an integer >= 1"),
        ("random_crop(zeros(2, 3, 4, 4), zeros(2, 8), pad=-1)", "pad must be an integer >= 0"),
        ("cutout(zeros(2, 3, 4, 4), zeros(2, 8), size=2.5)", "size must be an integer >= 0"),
        ("cutout(zeros(2, 3, 4, 4), zeros(2, 8), fill=-1)", "fill must be an integer >= 0"),
        ("cutout(zeros(2, 3, 4, 4), zeros(2, 8), fill=256)", "fill must be at most 255"),
    )),
    *(("data.Batches(np.zeros((2, 1, 4, 4), np.uint8), np.zeros(2, int), 1, mean=[0.5], std=[1.0],"
       f" augment={wrong})", TypeError, "augment must be a list of functions, got ")
      for wrong in ("data.random_flip", "'crop_flip'", "None", "[3]")),
    ("data.read_image(3)", data.DataError, r"^3 cannot be .*a path must be text .* got int"),
    # channels last
    ("involution(zeros(2, 8, 8, 3), kernel)", ValueError,
     r"^x must be \(N, C, H, W\), got shape \(2, 8, 8, 3\), " + NHWC),
    ("reference.involution(zeros(2, 8, 8, 3), kernel)", ValueError, NHWC),
    ("involution_backward(zeros(2, 3, 8, 8), zeros(2, 8, 8, 3), kernel)", ValueError, NHWC),
    ("involution(zeros(2, 8, 3), zeros(2, 1, 5, 8))", ValueError,
     r"which looks like NWC: transpose with x\.transpose\(0, 2, 1\)"),
    ("involution(zeros(2, 8, 8, 9, 3), zeros(2, 1, 3, 3, 3, 8, 8, 9))", ValueError,
     r"which looks like NDHWC: transpose with x\.transpose\(0, 4, 1, 2, 3\)"),
    ("fused_involution(zeros(2, 8, 8, 3), zeros(2, 4, 8, 8), zeros(9, 4), kernel_size=3)",
     ValueError, NHWC),
    ("F.conv2d(zeros(2, 8, 8, 3), zeros(4, 3, 3, 3))", ValueError,
     r"^x must be \(N, 3, H, W\) for weight \(4, 3, 3, 3\).*got \(2, 8, 8, 3\), " + NHWC),
    # no batch axis
    ("involution(zeros(3, 8, 8), kernel)", ValueError, r"got shape \(3, 8, 8\).*, " + NO_BATCH),
    ("F.conv2d(zeros(3, 8, 8), zeros(4, 3, 3, 3))", ValueError, NO_BATCH),
    ("F.max_pool2d(zeros(3, 8, 8), 2)", ValueError, NO_BATCH),
    ("F.linear(zeros(3), zeros(4, 3))", ValueError, NO_BATCH),
    # dtypes and libraries
    ("involution(np.zeros((2, 3, 8, 8), int), kernel)", TypeError,
     r"^x has dtype int64, but only floating dtypes work .*: convert it with \.astype\('float32'"),
    ("involution(np.zeros((2, 3, 8, 8), np.uint8), kernel)", TypeError,
     r"^x has dtype uint8.*\.astype\('float32'\) / 255 if it holds images"),
    ("involution(np.zeros((2, 3, 8, 8), object), kernel)", TypeError, "^x has dtype object"),
    ("involution(np.ma.zeros((2, 3, 8, 8)), kernel)", TypeError,
     r"^x is a masked array.*fill it first"),
    ("involution([[1.0]], kernel)", TypeError,
     r"^x must be a NumPy or CuPy array, got list: convert it with numpy\.asarray"),
    ("F.relu('image.png')", TypeError, r"^x must be a NumPy or CuPy array, got str"),
    ("involution(torch_tensor, kernel)", TypeError,
     r"^x must be .*got torch's Tensor: call invocupy\.interop\.torch\.involution, or convert it"),
    ("involution(zeros(2, 3, 8, 8), jax_array)", TypeError,
     r"^kernel must be .*got jax's ArrayImpl: call invocupy\.interop\.jax\.involution"),
    ("involution_backward(dask_array, zeros(2, 3, 8, 8), kernel)", TypeError,
     r"^grad_out must be .*got dask's Array: call invocupy\.interop\.dask\.involution"),
    ("F.exp(torch_tensor)", TypeError, "^x must be .*got torch's Tensor"),
    ("involution(zeros(2, 3, 8, 8), kernel, out=np.zeros((2, 3, 8, 8)))", ValueError,
     r"^out must have shape .* and dtype float32, got .* float64: make it with empty\("),
    # kernels and options
    ("involution(zeros(2, 3, 8, 8), kernel, stride=2)", ValueError,
     r"^kernel has 8x8 positions.*stride \(2, 2\).*gives 4x4: make one kernel for each output"),
    ("involution(zeros(2, 4, 8, 8), zeros(2, 3, 3, 3, 8, 8))", ValueError,
     r"^kernel must have a number of groups that divides .* G=3, .* C=4"),
    ("involution(zeros(2, 3, 8, 8), zeros(2, 9, 8, 8))", ValueError,
     r"^kernel must have 6 dimensions \(N, G, Kh, Kw, Ho, Wo\).*: reshape a flat"),
    ("involution(zeros(2, 3, 8, 8), zeros(2, 1, 4, 4, 8, 8))", ValueError,
     r"^padding='same' needs an odd kernel size, got 4x4: .*give the padding"),
    ("involution(zeros(2, 3, 8, 8), kernel, 2)", TypeError,
     r"too many positional arguments: give stride, padding, dilation, out by name"),
    ("F.conv2d(zeros(2, 3, 8, 8), zeros(4, 3, 3, 3), strides=2)", TypeError,
     r"^conv2d\(\) got an unexpected keyword argument 'strides': did you mean stride\?"),
    ("F.matmul(zeros(2, 3), zeros(2, 4))", ValueError,
     r"^a and b must be .*got shapes \(2, 3\) and \(2, 4\): reshape or transpose"),
    # losses and gradients
    ("F.cross_entropy(zeros(4, 3), np.eye(3, dtype=int)[[0, 1, 2, 0]])", ValueError,
     r"labels \(N,\) integers.*got .*\(4, 3\) of int64.*one-hot rows, labels\.argmax\(axis=1\)"),
    ("F.cross_entropy(zeros(4, 3), np.zeros(4))", ValueError, r"labels \(N,\) integers.*float64"),
    ("F.cross_entropy(zeros(4, 3), [0, 1, 2, 0])", TypeError, "^labels must be .*got list"),
    ("F.cross_entropy(zeros(4, 3), np.array([1, 2, 3, 1]))", ValueError,
     r"^labels must be in \[0, 3\), got 1 to 3"),
    ("(Tensor(zeros(2, 2), requires_grad=True) * 2).backward()", ValueError,
     r"^backward\(\) needs a single number.*shape \(2, 2\): take its \.mean\(\) or \.sum\(\)"),
    ("Tensor(zeros(1)).backward()", RuntimeError, r"requires_grad=True.*not .*under no_grad\(\)"),
    # devices
    ("to_device(zeros(1), 'cuda')", RuntimeError,
     r"CuPy, which is not installed: pip install 'invocupy\[cuda13x\]'.*or use device='cpu'"),
    ("nn.Linear(2, 2).to('gpu')", ValueError,
     r"^device must be 'cpu', 'cuda' or 'cuda:i', got 'gpu'"),
    ("nn.Linear(2, 2).to(0)", ValueError, r"^device must be .*, got 0"),
    ("import invocupy.interop.torch", ModuleNotFoundError,
     r"^PyTorch is not installed: pip install 'invocupy\[torch\]'"),
    ("import invocupy.interop.jax", ModuleNotFoundError, r"^JAX is not installed: pip install"),
    ("import invocupy.interop.dask", ModuleNotFoundError, r"^dask is not installed: pip install"),
]  # fmt: skip

LAYERS: list[Mistake] = [
    ("nn.Involution(32)(zeros(2, 16, 8, 8))", ValueError,
     r"^Involution: x must be \(N, 32, H, W\), got shape \(2, 16, 8, 8\): the layer has "
     r"channels=32, x has 16$"),
    ("nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU(), nn.Involution(32)))(zeros(2, 16, 8, 8))",
     ValueError, r"^layer 1\.1 \(Involution\): x must be \(N, 32, H, W\)"),
    ("nn.Involution(16)(zeros(2, 8, 8, 16))", ValueError, "^Involution: x must be .*" + NHWC),
    ("nn.Conv2d(3, 8, 3)(zeros(3, 8, 8))", ValueError, "^Conv2d: x must be .*" + NO_BATCH),
    ("nn.Conv2d(4, 8, 3, groups=2)(zeros(2, 6, 8, 8))", ValueError,
     r"^Conv2d: x must be \(N, 4, H, W\), .*has in_channels=4, x has 6"),
    ("nn.BatchNorm2d(4)(zeros(2, 5, 3, 3))", ValueError, "has num_features=4, x has 5"),
    ("nn.BatchNorm2d(4)([[1.0]])", TypeError, "^BatchNorm2d: x must be .*array, got list"),
    ("nn.Sequential(nn.Flatten(), nn.Linear(10, 4))(zeros(2, 3, 4, 4))", ValueError,
     r"^layer 1 \(Linear\): x must be \(N, 10\), got shape \(2, 48\): .*in_features=10, x has 48"),
    ("nn.Linear(48, 4)(zeros(2, 3, 4, 4))", ValueError,
     r"^Linear: x must be \(N, 48\).*flatten it with x\.reshape\(len\(x\), -1\)"),
    ("models.SimpleModel(num_layers=1)(zeros(2, 32, 32, 3))", ValueError,
     r"^SimpleModel: x must have the shape \(N, 3, 32, 32\).*" + NHWC),
    ("models.SimpleModel(num_layers=1)(zeros(3, 32, 32))", ValueError, NO_BATCH),
    ("models.SimpleModel(num_layers=1)(zeros(2, 3, 16, 16))", ValueError,
     "give such images, or make the model with their height, width"),
    ("models.SimpleModel(num_layers=1)(np.zeros((2, 3, 32, 32), np.uint8))", TypeError,
     r"^layer blocks\.0\.expand \(Conv2d\): x has dtype uint8"),
    ("models.SmallNet(width=32)(zeros(2, 32, 32, 3))", ValueError,
     r"^layer conv1 \(Conv2d\): x must be .*" + NHWC),
    ("nn.Involution(30)", ValueError,
     "^channels must be a multiple of channels_per_group, got channels=30, channels_per_group=16"),
    ("nn.Involution(16, kernel_size=4)", ValueError, "^kernel_size must be odd.*got 4"),
    ("nn.Conv2d(4, 6, 3, groups=3)", ValueError,
     "^groups must divide in_channels and out_channels, got groups=3"),
    ("nn.Conv2d(3, 4, 7)(zeros(1, 3, 4, 4))", ValueError,
     "^Conv2d: x of 4x4 is too small for kernel size 7x7.*give more padding or a smaller kernel"),
    ("nn.Sequential([nn.ReLU()])", TypeError, r"number 0 is list:.*Sequential\(\*layers\)"),
    ("optim.SGD(nn.Linear(2, 2), lr=0.1)", TypeError, r"^params must be .*model\.parameters\(\)"),
    ("optim.SGD(nn.ReLU().parameters(), lr=0.1)", ValueError, "at least one parameter, got none"),
    ("optim.SGD(nn.Linear(2, 2).parameters(), lr=-1)", ValueError,
     "^lr must be a finite number >= 0, got -1"),
    ("optim.SGD(nn.Linear(2, 2).parameters(), lr=np.nan)", ValueError, "^lr must be .*got nan"),
    ("nn.Linear(2, 3).load_state_dict(nn.Linear(3, 3).state_dict())", ValueError,
     r"weight: shape \(3, 3\), expected \(3, 2\)"),
    ("nn.Linear(2, 3).load_state_dict('best.safetensors')", TypeError,
     r"^state must be a mapping of names to arrays, got str: read a file first"),
    ("weights.import_state(nn.Linear(2, 2), 'best.safetensors')", ValueError,
     r"got the path best\.safetensors: read the file with invocupy\.weights\.read"),
    ("train.fit({'epochs': 3})", TypeError, r"^config must be a Config, got dict: Config\("),
    ("train.Config(epochs='3')", ValueError, "^epochs must be of type int, got '3'"),
    ("train.Config(dataset='cifar')", ValueError, r"^dataset must be one of .*mean cifar10\?"),
]  # fmt: skip

NO_RUN = "give the folder of a run, which training names at its end"

COMMANDS: list[tuple[str, int, str]] = [
    ("trian", 2, r"invalid choice: 'trian'.*: did you mean train\?"),
    ("train --epocs 3", 2, r"unrecognized arguments: --epocs 3: did you mean --epochs\?"),
    ("train --epochs three", 2, "--epochs: invalid int value: 'three'"),
    ("train --lr -1", 2, "lr must be a finite number above 0, got -1.0"),
    ("train --device gpu", 2, "device must be auto, cpu, cuda or cuda:i, got 'gpu'"),
    ("train --model resnet", 2, r"model must be one of .*did you mean resnet"),
    ("train --config old.toml", 2, r"config old\.toml has no setting epoch: did you mean epochs\?"),
    ("train --dataset cifar10 --data-dir nowhere", 65, "root nowhere has no CIFAR-10"),
    ("train --dataset cifar10 --data-dir .", 65,
     r"root \. has the Python version of CIFAR-10.*: download the binary version, cifar-10-binary"),
    ("train --dataset cifar10 --data-dir cifar-10-batches-py", 65, "has the Python version"),
    ("train --dataset folder --data-dir nowhere", 65,
     r"nowhere has no folder train: it must hold train/CLASS/\* and test/CLASS/\*"),
    ("evaluate nowhere", 65, r"\(nowhere is not a folder\): " + NO_RUN),
    ("evaluate .", 65, r"\(\. has no such file\): " + NO_RUN),
    ("report text.png", 65, r"\(text\.png is not a folder\): " + NO_RUN),
    ("train --layers 0 --limit 40 --lr 1e30 --device cpu --no-plots --out diverged", 70,
     r"training loss is .* train with a lower lr than 1e\+30"),
]  # fmt: skip


@pytest.fixture
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where nothing but invocupy is installed."""
    for library in ("cupy", "torch", "jax", "dask"):
        monkeypatch.setitem(sys.modules, library, None)
        monkeypatch.delitem(sys.modules, f"invocupy.interop.{library}", raising=False)


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize(("code", "kind", "message"), ARRAYS + LAYERS, ids=lambda item: str(item))
def test_what_a_mistake_in_code_is_told(code: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        exec(code, dict(NAMES))  # noqa: S102
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("own_folder")
@pytest.mark.parametrize(("line", "code", "message"), COMMANDS, ids=lambda item: str(item))
def test_what_a_mistake_on_the_command_line_is_told(
    line: str, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from invocupy.cli import main

    Path("old.toml").write_text("epoch = 3\n")
    Path("text.png").write_text("no image")
    Path("cifar-10-batches-py").mkdir()
    Path("cifar-10-batches-py", "data_batch_1").write_text("")
    try:
        found: Any = main(line.split())
    except SystemExit as end:
        found = end.code
    assert found == code
    told = capsys.readouterr().err.splitlines()[-1]
    assert re.search(message, told), told


@pytest.mark.usefixtures("own_folder")
def test_an_image_file_that_is_text_is_told() -> None:
    pytest.importorskip("PIL")
    Path("text.png").write_text("no image")
    message = r"^text\.png cannot be read as an image .*: give a whole file .* such as PNG or JPEG"
    with pytest.raises(data.DataError, match=message):
        data.read_image("text.png")
