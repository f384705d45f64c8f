"""The network, the trainer and the command line on CuPy arrays: on a device, or on the stand-in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import invocupy
from invocupy import functional as F  # noqa: N812
from invocupy import models, nn, optim, to_device
from invocupy.arrays import device_of, require_cupy
from invocupy.backends import cuda
from invocupy.cli import main
from invocupy.data import Batches, random_crop, random_flip, shapes10
from invocupy.train.evaluation import logits_of

pytestmark = pytest.mark.gpu

# Two devices compute the same sums in other orders. Roundings grow from step to step, most where
# they decide a sign that a ReLU sees. So networks are compared in float64, where they leave half of
# the digits, and what the command line trains, in float32, for one step from equal parameters.
CLOSE = {"rtol": 1e-8, "atol": 1e-8}
ONE_STEP = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def cp() -> Any:
    return require_cupy()


def last_device(cp: Any) -> str:
    """Where there are several, not the current one."""
    return f"cuda:{cp.cuda.runtime.getDeviceCount() - 1}"


def steps(model: Any, device: str, number: int = 3) -> list[float]:
    """The losses of some steps of training, in float64; the model ends trained."""
    model.to(device)
    for parameter in model.parameters():
        parameter.data = parameter.data.astype(np.float64)
    images, labels = shapes10(4 * number, 0)
    images, labels = (to_device(array, device) for array in (images[..., ::3, ::3], labels))
    batches = Batches(
        images, labels, 4, mean=(127.5,) * 3, std=(60.0,) * 3, augment=[random_crop, random_flip]
    )
    sgd = optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-3, nesterov=True)
    losses = []
    for x, y in batches.epoch(0):
        loss = F.cross_entropy(logits_of(model, invocupy.Tensor(x.astype(np.float64))), y)
        sgd.zero_grad()
        loss.backward()
        optim.clip_by_norm(model.parameters(), 1.0)
        sgd.step()
        losses.append(loss)
    return [loss.item() for loss in losses]


def convolutions() -> nn.Module:
    rng = np.random.default_rng(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, rng=rng), nn.BatchNorm2d(8), nn.ReLU(),
        nn.MaxPool2d(2, stride=1), nn.Conv2d(8, 8, 3, padding=1, groups=8, rng=rng),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32, 10, rng=rng),
    )  # fmt: skip


def fused() -> nn.Module:
    rng = np.random.default_rng(0)
    layer = nn.Involution(16, kernel_size=3, fused=True, rng=rng)
    head = nn.GlobalAvgPool2d(), nn.Flatten(), nn.Linear(16, 10, rng=rng)
    return nn.Sequential(nn.Conv2d(3, 16, 1, rng=rng), layer, *head)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "involution": lambda: models.SimpleModel(11, 11, num_layers=2, rng=0),
    "strided involution": lambda: models.SmallNet("involution", 32, rng=0),
    "fused involution": fused,
    "convolution": convolutions,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_train_as_on_the_cpu(cp: Any, name: str) -> None:
    here, there = NETWORKS[name](), NETWORKS[name]()
    np.testing.assert_allclose(steps(there, "cuda"), steps(here, "cpu"), **CLOSE)
    wanted = here.state_dict()
    for key, array in there.state_dict().items():
        close = CLOSE if array.dtype == np.float64 else ONE_STEP  # running statistics
        np.testing.assert_allclose(array, wanted[key], err_msg=key, **close)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("layer", "size"), [(nn.Involution1d, (21,)), (nn.Involution3d, (4, 5, 9))], ids=["1d", "3d"]
)
def test_layers_of_signals_and_volumes(
    cp: Any, layer: type[nn.Involution], size: tuple[int, ...], stride: int, fused: bool
) -> None:
    """Results and all gradients are those of the CPU."""
    results = []
    for device in ("cpu", "cuda"):
        options = {"kernel_size": 3, "stride": stride, "channels_per_group": 4, "fused": fused}
        model = layer(8, **options, rng=np.random.default_rng(0))
        for parameter in model.to(device).parameters():
            parameter.data = parameter.data.astype(np.float64)
        array = to_device(np.random.default_rng(1).standard_normal((2, 8, *size)), device)
        x = invocupy.Tensor(array, requires_grad=True)
        out = model(x)
        (out * out).sum().backward()
        leaves = (x, *model.parameters())
        results.append([to_device(a, "cpu") for a in (out.data, *(leaf.grad for leaf in leaves))])
    for got, wanted in zip(*results, strict=True):
        np.testing.assert_allclose(got, wanted, **CLOSE)


def test_a_step_waits_for_nothing(cp: Any) -> None:
    if not hasattr(cp.cuda, "waits"):
        pytest.skip("only the stand-in counts how often the host waits")
    model = models.SimpleModel(num_layers=1, rng=0).to("cuda")
    images, labels = (cp.asarray(array) for array in shapes10(4, 0))
    batches = Batches(images, labels, 2, mean=(0.0,) * 3, std=(1.0,) * 3, augment=[random_flip])
    sgd = optim.SGD(model.parameters(), 0.05, momentum=0.9)
    before = cp.cuda.waits
    for x, y in batches.epoch(0):
        loss = F.cross_entropy(logits_of(model, invocupy.Tensor(x)), y)
        sgd.zero_grad()
        loss.backward()
        optim.clip_by_norm(model.parameters(), 1.0)
        sgd.step()
    assert cp.cuda.waits == before
    loss.item()
    assert cp.cuda.waits == before + 1


def test_out_waits_for_nothing(cp: Any) -> None:
    if not hasattr(cp.cuda, "waits"):
        pytest.skip("only the stand-in counts how often the host waits")
    x, kernel = cp.ones((1, 2, 4, 4)), cp.ones((1, 1, 3, 3, 4, 4))
    out, before = cp.empty((1, 2, 4, 4)), cp.cuda.waits
    assert invocupy.involution(x, kernel, out=out) is out
    assert cp.cuda.waits == before
    with pytest.raises(ValueError, match="out overlaps x"):
        invocupy.involution(x, kernel, out=x)


def test_kernels_are_compiled_on_the_device_of_their_arrays(
    cp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cp.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("needs two devices")
    devices, get = [], cp.RawModule.get_function

    def get_function(module: Any, name: str) -> Any:
        devices.append(cp.cuda.Device().id)
        return get(module, name)

    monkeypatch.setattr(cp.RawModule, "get_function", get_function)
    with cp.cuda.Device(1):
        x, kernel = cp.ones((1, 2, 4, 4)), cp.ones((1, 1, 3, 3, 4, 4))
    cuda._compile.cache_clear()
    invocupy.involution(x, kernel)
    assert devices == [1]


def test_the_command_line(cp: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a device that is not the current one, and from there to another and to the CPU."""
    options = ["--layers", "1", "--limit", "16", "--batch-size", "16"]
    records = {}
    for device in ("cpu", last_device(cp)):
        run = tmp_path / device.replace(":", "")
        train = ["train", *options, "--epochs", "1", "--device", device, "--out", str(run)]
        assert main(train) == 0
        records[device] = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    for key in ("train_loss", "test_loss"):
        np.testing.assert_allclose(*(record[key] for record in records.values()), **ONE_STEP)
    capsys.readouterr()
    results = []
    for device in ("cpu", "cuda", last_device(cp)):
        assert main(["evaluate", str(run), "--device", device, "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out)["loss"])
    np.testing.assert_allclose(results, results[0], **ONE_STEP)
    assert main(["train", "--resume", str(run), "--epochs", "2", "--device", "cuda"]) == 0
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    assert main(["report", str(run), "--device", last_device(cp)]) == 0
    assert main(["summary", "--layers", "1", "--device", last_device(cp)]) == 0
    assert device_of(cp.zeros(1)) == "cuda:0"


def test_info(cp: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--warm", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    count = cp.cuda.runtime.getDeviceCount()
    assert set(found["self_check"]) == {"cpu", *(f"cuda:{i}" for i in range(count))}
    assert not any(found["self_check"].values())
    assert set(found["warm_seconds"]) == set(found["self_check"])
