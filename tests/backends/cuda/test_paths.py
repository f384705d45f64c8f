"""Every path through the library on a GPU: the host waits for nothing, and all goes to one stream.

On the stand-in with idle devices, where a kernel is neither built nor run. What a path may wait for
is said in ``WAITS``; all others wait for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from op_table import ROWS

import invocupy
from invocupy import Tensor, distributed, models, nn, no_grad, optim, to_device
from invocupy import functional as F  # noqa: N812
from invocupy.arrays import require_cupy
from invocupy.backends import cuda
from invocupy.data import Batches, random_crop, random_flip, shapes10
from invocupy.train import evaluate
from invocupy.train.evaluation import logits_of

pytestmark = pytest.mark.gpu
Path = Callable[[], Any]


@pytest.fixture(scope="module")
def cp() -> Any:
    cupy = require_cupy()
    if not hasattr(cupy.cuda, "recording"):
        pytest.skip("only the stand-in records what devices are asked for")
    return cupy


def training(cp: Any, model: nn.Module, size: int = 8, **options: Any) -> Path:
    """Steps on augmented batches, with clipped gradients; all parameters and inputs are there."""
    model.to("cuda")
    images, labels = (to_device(array, "cuda") for array in shapes10(4, 0))
    style = {"mean": (127.5,) * 3, "std": (60.0,) * 3, "augment": [random_crop, random_flip]}
    batches = Batches(images[..., :size, :size], labels, 2, **style)  # type: ignore[arg-type]
    sgd = optim.SGD(model.parameters(), 0.05, momentum=0.9, **options)

    def run() -> None:
        for x, y in batches.epoch(0):
            loss = F.cross_entropy(logits_of(model, Tensor(x)), y, label_smoothing=0.1)
            sgd.zero_grad()
            loss.backward()
            optim.clip_by_norm(model.parameters(), 1.0)
            sgd.step()

    return run


def evaluation(cp: Any, model: nn.Module) -> Path:
    model.to("cuda").eval()
    x = cp.zeros((2, 3, 8, 8), np.float32)

    def run() -> None:
        with no_grad():
            logits_of(model, x)

    return run


def evaluated(cp: Any) -> Path:
    model = simple().to("cuda")
    images, labels = (to_device(array, "cuda") for array in shapes10(4, 0))
    style = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "batch_size": 2}
    return lambda: evaluate(model, images[..., :8, :8], labels, **style)  # type: ignore[arg-type]


def layers(cp: Any) -> Path:
    """One after another, with their gradients."""
    rng = np.random.default_rng(0)
    conv = nn.Conv2d
    chain = [
        conv(16, 32, 3, padding=1, rng=rng), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        conv(32, 32, 3, groups=32, padding="same", rng=rng), conv(32, 32, 1, stride=2, rng=rng),
        nn.AvgPool2d(2), nn.Involution(32, 3, fused=False, rng=rng),
        nn.Involution(32, 5, fused=True, rng=rng), nn.Involution(32, 3, stride=2, rng=rng),
        nn.GlobalAvgPool2d(), nn.Flatten(), nn.Linear(32, 3, rng=rng),
    ]  # fmt: skip
    model = nn.Sequential(*chain).to("cuda")
    return backward_of(model, cp.zeros((2, 16, 20, 20), np.float32))


def backward_of(model: nn.Module, array: Any) -> Path:
    x = Tensor(array, requires_grad=True)
    return lambda: model(x).sum().backward()


def synchronised(cp: Any) -> Path:
    """Norms over ranks, of which there is one."""
    model = nn.Sequential(nn.Conv2d(4, 4, 1, rng=np.random.default_rng(0)), nn.BatchNorm2d(4))
    distributed.synchronise(model.to("cuda"), distributed.Single())
    return backward_of(model, cp.zeros((2, 4, 6, 6), np.float32))


def functions(cp: Any, fused: bool) -> Path:
    """Involution and its gradients, into arrays that are there."""
    x, out = (cp.zeros((2, 8, 6, 6), np.float32) for _ in range(2))
    kernel, features = cp.zeros((2, 2, 3, 3, 6, 6), np.float32), cp.zeros((2, 4, 6, 6), np.float32)
    weight, bias = cp.zeros((18, 4), np.float32), cp.zeros(18, np.float32)

    def run() -> None:
        if fused:
            arrays, size = (x, features, weight, bias), {"kernel_size": 3}
            invocupy.fused_involution(*arrays, out=out, **size)  # type: ignore[arg-type]
            invocupy.fused_involution_backward(out, *arrays, **size)  # type: ignore[arg-type]
        else:
            invocupy.involution(x, kernel, out=out)
            invocupy.involution_backward(out, x, kernel)

    return run


def operators(cp: Any) -> Path:
    """Every operator, with all gradients."""

    def run() -> None:
        for row in ROWS:
            value, vjps = row.run_op(*drawn[id(row)])
            if value.dtype.kind == "f":
                for vjp, argument in zip(vjps, drawn[id(row)], strict=False):
                    if getattr(argument, "dtype", np.dtype(int)).kind == "f":
                        vjp(cp.zeros(value.shape, value.dtype))

    drawn = {id(row): row.draw(0, cp, "float32") for row in ROWS}
    return run


def simple(**options: Any) -> models.SimpleModel:
    return models.SimpleModel(8, 8, num_layers=1, rng=0, **options)


PATHS: dict[str, Callable[[Any], Path]] = {
    "operators": operators,
    "layers": layers,
    "1d": lambda cp: backward_of(
        nn.Involution1d(16, stride=2).to("cuda"), cp.zeros((1, 16, 9), np.float32)
    ),
    "3d": lambda cp: backward_of(
        nn.Involution3d(16).to("cuda"), cp.zeros((1, 16, 3, 4, 5), np.float32)
    ),
    "involution": lambda cp: functions(cp, fused=False),
    "fused involution": lambda cp: functions(cp, fused=True),
    "training, whole blocks": lambda cp: training(cp, simple()),
    "training, layer by layer": lambda cp: training(
        cp, simple(fused=False), weight_decay=1e-3, nesterov=True
    ),
    "training, RedNet": lambda cp: training(cp, models.rednet26(10, stem="cifar", rng=0)),
    "training, convolutions": lambda cp: training(cp, models.SmallNet("convolution", 16, rng=0)),
    "synchronised norms": synchronised,
    "evaluation, whole blocks": lambda cp: evaluation(cp, simple()),
    "evaluation, layer by layer": lambda cp: evaluation(cp, simple(fused=False)),
    "evaluation, RedNet": lambda cp: evaluation(cp, models.rednet26(10, stem="cifar", rng=0)),
    "evaluate": evaluated,
}
WAITS = {"evaluate": 3}  # for labels, the loss and the answers, once for all batches


def runs(cp: Any, path: Path) -> tuple[int, set[str]]:
    """How often the host waits, and what goes to another stream than the current one."""
    with cp.cuda.recording(idle=True):
        path()  # constants are made
        cp.cuda.Device().synchronize()
    stream = cp.cuda.Stream(non_blocking=True)
    try:
        with stream, cp.cuda.recording(idle=True) as operations:
            before = cp.cuda.waits
            path()
            waits = cp.cuda.waits - before
    finally:
        stream.synchronize()  # else what is freed is in use as long as the tests run
    assert operations, "nothing was asked for"
    return waits, {o.name for o in operations if o.stream != stream.ptr}


@pytest.mark.parametrize("name", PATHS)
def test_a_path_waits_for_nothing_and_keeps_to_its_stream(cp: Any, name: str) -> None:
    assert runs(cp, PATHS[name](cp)) == (WAITS.get(name, 0), set())


def test_training_never_fuses_by_itself(cp: Any) -> None:
    """Fused backward takes longer than the stored kernel; fused forward less, if that is large."""
    layer = nn.Involution(32, 7, rng=np.random.default_rng(0)).to("cuda")
    x = cp.empty((64, 32, 56, 56), np.float32)
    with cp.cuda.recording(idle=True) as training:
        layer(x).sum().backward()
    with cp.cuda.recording(idle=True) as evaluation, no_grad():
        layer(x)
        layer(x[:1])
    names = [{o.name for o in operations} for operations in (training, evaluation)]
    assert not {name for name in names[0] if "fused" in name}
    assert {"involution/fused_forward", "involution/forward"} <= names[1]


def test_the_second_gradient_of_an_image_is_added_by_cublas(cp: Any) -> None:
    """In the pass that makes it; the first is an array that nobody else has."""
    rng = np.random.default_rng(0)
    model = nn.Sequential(*(nn.Conv2d(6, 4, 1, rng=rng) for _ in range(3)))
    array = rng.standard_normal((2, 6, 5, 4))
    found = []
    for device in ("cpu", "cuda"):
        layers = model.to(device)
        for parameter in layers.parameters():
            parameter.data, parameter.grad = parameter.data.astype(np.float64), None
        x = Tensor(to_device(array, device), requires_grad=True)
        with cp.cuda.recording() as operations:
            inner = x * 2
            a, b, c = (layer(inner) for layer in layers)
            (a * b * c).sum().backward()
        found.append([to_device(leaf.grad, "cpu") for leaf in (x, *layers.parameters())])
    for got, wanted in zip(*found, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)
    assert not [o for o in operations if o.name == "cupy.add" and o.bytes >= 3 * array.nbytes]


def test_a_planted_wait_is_caught(cp: Any) -> None:
    """A result that is looked at, and a mask by which an array is indexed."""
    x = cp.zeros(4)
    assert runs(cp, lambda: (x + 1).sum().item())[0] == 1
    assert runs(cp, lambda: x[x > 0])[0] == 1


def test_a_planted_launch_on_another_stream_is_caught(
    cp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what it reads, which nothing orders, and by its name."""
    compiled = cuda._compile.__wrapped__

    def compile_(kernel: str, macros: Any) -> Any:
        function = compiled(kernel, macros)

        def start(*launch: Any) -> None:
            with cp.cuda.Stream.null:
                function(*launch)

        return start

    monkeypatch.setattr(cuda, "_compile", compile_)
    path = PATHS["training, layer by layer"](cp)
    with pytest.raises(cp.cuda.StreamError, match="no event orders them"):
        runs(cp, path)
    monkeypatch.setattr(cp.cuda.Stream, "follows", lambda *ignored: None)
    _, elsewhere = runs(cp, path)
    assert "involution/forward" in elsewhere
