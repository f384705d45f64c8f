"""The networks: sizes, initial weights, odd images, training. Their numbers: tests/weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from invocupy import Tensor, models, nn, optim
from invocupy import functional as F  # noqa: N812
from invocupy.cli import main

PARAMETERS = {
    "rednet26": 9_233_166,
    "rednet38": 12_386_986,
    "rednet50": 15_540_806,
    "rednet101": 25_652_950,
    "rednet152": 33_984_582,
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_of_the_papers_code_and_torchvision(name: str) -> None:
    model = models.NETWORKS[name](rng=0)
    assert sum(p.size for p in model.parameters()) == PARAMETERS[name]
    assert models.NETWORKS.keys() == PARAMETERS.keys()


SMALL = {"involution": 64, "convolution": 31, "depthwise": 69}


def test_small_networks_of_three_kinds_have_as_many_parameters() -> None:
    counts = {
        spatial: sum(p.size for p in models.SmallNet(spatial, width, rng=0).parameters())
        for spatial, width in SMALL.items()
    }
    assert counts == {"involution": 454_804, "convolution": 454_945, "depthwise": 450_560}


@pytest.mark.parametrize("spatial", SMALL)
def test_small_network_keeps_its_promises(spatial: Any) -> None:
    model = models.SmallNet(spatial, 32, in_channels=2, rng=0)
    x = np.random.default_rng(0).standard_normal((3, 2, 17, 13), np.float32)
    logits = model(Tensor(x))  # odd sizes
    F.cross_entropy(logits, np.arange(3)).backward()
    assert logits.shape == (3, 10)
    for name, parameter in model.named_parameters():
        # the last norms begin at 0, and what is behind them has no gradient yet
        behind = ".conv1." in name or ".bn1." in name or ".spatial." in name or ".bn2." in name
        still = name.startswith("blocks.") and (behind or ".conv3." in name)
        assert bool(np.any(parameter.grad)) == (not still), name
    kinds = {
        type(m).__name__ for n, m in model.named_modules() if n.endswith((".spatial", "conv2"))
    }
    assert kinds == {"Involution" if spatial == "involution" else "Conv2d"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"spatial": "attention"}, "spatial must be one of involution, convolution, depthwise"),
        ({"width": 48}, "width must be at least 2, and with involution a multiple of 32, got 48"),
        ({"width": None}, "width must be an integer >= 2, got None"),
        ({"num_classes": 0}, "num_classes must be an integer >= 1, got 0"),
        ({"in_channels": True}, "in_channels must be an integer >= 1, got True"),
    ],
)
def test_small_network_refuses(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        models.SmallNet(**options)


def tiny(kind: str, stem: Any = "cifar", **options: Any) -> models.RedNet | models.ResNet:
    """One block a stage."""
    if kind == "rednet":
        return models.RedNet((1, 1, 1, 1), 10, stem=stem, **options)
    return models.ResNet(models.resnet.BasicBlock, (1, 1, 1, 1), 10, stem=stem, **options)


kinds = pytest.mark.parametrize("kind", ["rednet", "resnet"])


@kinds
@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
@pytest.mark.parametrize("size", [(33, 47), (32, 32), (1, 1)])
def test_every_size_works(kind: str, stem: str, size: tuple[int, int]) -> None:
    model = tiny(kind, stem, rng=0).eval()
    logits = model(np.ones((2, 3, *size), np.float32))
    assert logits.shape == (2, 10)
    assert np.isfinite(logits.data).all()


def test_stems_differ_in_what_they_leave() -> None:
    x = np.ones((1, 3, 64, 48), np.float32)
    for stem, size in ("imagenet", (16, 12)), ("cifar", (64, 48)):
        assert tiny("rednet", stem).stem(x).shape == (1, 64, *size)
        resnet = tiny("resnet", stem)
        assert resnet.maxpool(resnet.conv1(x)).shape == (1, 64, *size)


def test_initial_weights_are_the_papers() -> None:
    model = models.rednet26(rng=0)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            o, _, h, w = module.weight.shape
            draws = module.weight.data.astype(np.float64).ravel() / np.sqrt(2 / (o * h * w))
            # mean and mean square of that many standard normal numbers, six deviations
            assert abs(draws.mean()) < 6 / np.sqrt(draws.size), name
            assert abs((draws**2).mean() - 1) < 6 * np.sqrt(2 / draws.size), name
            assert module.bias is None or not module.bias.data.any(), name
            assert (module.bias is None) == (not name.endswith("span")), name
        if isinstance(module, nn.BatchNorm2d):
            last = name.endswith("bn3") and name.startswith("layer")
            assert (module.weight.data == (0 if last else 1)).all(), name
            assert not module.bias.data.any(), name
    draws = model.fc.weight.data.astype(np.float64).ravel() / 0.01
    assert abs((draws**2).mean() - 1) < 6 * np.sqrt(2 / draws.size)
    assert not model.fc.bias.data.any()


def test_initial_weights_are_torchvisions() -> None:
    model = models.resnet18(rng=0)
    draws = model.layer4[0].conv2.weight.data.astype(np.float64).ravel() / np.sqrt(2 / (512 * 9))
    assert abs((draws**2).mean() - 1) < 6 * np.sqrt(2 / draws.size)
    assert (model.layer1[0].bn2.weight.data == 1).all()
    assert np.abs(model.fc.weight.data).max() <= 512**-0.5
    assert np.abs(model.fc.weight.data).max() > 0.99 * 512**-0.5


@kinds
def test_the_seed_makes_the_weights(kind: str) -> None:
    states = [tiny(kind, rng=seed).state_dict() for seed in (1, 1, 2)]
    assert all((states[0][name] == states[1][name]).all() for name in states[0])
    assert any((states[0][name] != states[2][name]).any() for name in states[0])


@pytest.mark.parametrize("options", [{"num_classes": 0}, {"in_channels": 0}, {"stem": "large"}])
@pytest.mark.parametrize("make", [models.rednet26, models.resnet18])
def test_refusals(make: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        make(**options)


@kinds
def test_training_learns_by_heart(kind: str) -> None:
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((8, 3, 16, 16), np.float32), np.arange(8)
    model = tiny(kind, rng=0).train()
    sgd = optim.SGD(model.parameters(), 0.05, momentum=0.9)
    losses = []
    for _ in range(12):
        sgd.zero_grad()
        loss = F.cross_entropy(model(Tensor(x)), labels)
        loss.backward()
        sgd.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_fused_or_not_is_the_same() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 17, 16))
    logits = []
    for fused in (True, False):
        model = tiny("rednet", fused=fused, rng=0).eval()
        for parameter in model.parameters():
            parameter.data = parameter.data.astype(np.float64)
        for block in (model.layer1, model.layer2, model.layer3, model.layer4):
            block[0].bn3.weight.data += 1  # which initially hides the block
        logits.append(model(x).data)
    assert np.abs(logits[0]).max() > 1e-3
    # some thousand roundings of numbers not much larger than the logits
    assert np.abs(logits[0] - logits[1]).max() <= 2**-30 * np.abs(logits[1]).max()


def test_the_command_line_trains_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    settings = ["--model", "rednet26", "--device", "cpu", "--limit", "4", "--batch-size", "2"]
    assert main(["train", *settings, "--epochs", "1", "--out", run]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"] == "rednet26"
    capsys.readouterr()
    assert main(["evaluate", run, "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 4


@pytest.mark.parametrize("shape", [(1, 3, 30, 32), (1, 1, 32, 32), (3, 32, 32)])
def test_simple_model_says_which_images_it_takes(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"x must have the shape \(N, 3, 32, 32\), got .*(: give|batch axis)"
    ):
        models.SimpleModel(num_layers=1)(np.zeros(shape, np.float32))
